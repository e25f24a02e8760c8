"""The verbs: a first word that is no override. Each is a module of its name, with parser() and main(arguments)."""

VERBS = {
    "resume": "continues a run from its folder alone, with the same bits",
    "verify": "trains a run again, killing itself at random, and compares the bits",
    "evaluate": "a run's test or validation figures again, from its folder",
}
