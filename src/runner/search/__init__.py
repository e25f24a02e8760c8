"""A search by Optuna: a sweep whose jobs follow from what came out."""
