"""Networks, losses and the recipes that train them: one file per family."""
