// The filter of the gallery. Without it, every face is shown.
const form = document.getElementById("filter");
const faces = [...document.querySelectorAll("#faces .face")];

function filter() {
  const wanted = new FormData(form);
  const lowest = parseFloat(wanted.get("lowest"));
  let shown = 0;
  for (const face of faces) {
    const scores = JSON.parse(face.dataset.scores);
    const score = scores[wanted.get("score")];
    const reason = wanted.get("reason");
    const fits =
      (!wanted.get("label") || face.dataset.label === wanted.get("label")) &&
      (!reason || (reason === "accepted" ? !face.dataset.reason : face.dataset.reason === reason)) &&
      (Number.isNaN(lowest) || (score != null && score >= lowest));
    face.hidden = !fits;
    shown += fits;
  }
  document.getElementById("shown").textContent = `${shown} of ${faces.length}`;
}

if (form) {
  form.hidden = false;
  form.addEventListener("input", filter);
  form.addEventListener("reset", () => setTimeout(filter));
  filter();
}
