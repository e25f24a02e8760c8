"""The verbs: a first word that is no override. Each is a module of its name, with parser() and main(arguments)."""

VERBS = {
    "evaluate": "a run's test or validation figures again, from its folder",
}
