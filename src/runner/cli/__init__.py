"""The verbs: what a first word that is no override means. Each lives in a module of its name, with a main(argv)."""

VERBS = {
    "evaluate": "a run's test or validation figures again, from its folder",
}
