"""The verbs: a first word that is no override. Each is a module, find-lr find_lr, with parser() and main(arguments)."""

# What they do is done whether or not somebody reads of it, and their exit code tells of that.
ACTING = ("resume", "verify", "label", "prune", "track", "report")
VERBS = {
    "check": "all that can be said of a command, a run or a sweep before anything trains",
    "preview": "the learning rate of every step, drawn, without training",
    "find-lr": "the learning-rate range test: a curve, a suggestion, and how much to believe it",
    "profile": "where the time of a training step goes, its operators, memory and arithmetic",
    "resume": "continues a run from its folder alone, with the same bits",
    "verify": "trains a run again, killed at random or kept in a new folder, and compares the bits",
    "ls": "the runs in folders: state, what varies between them, key metrics; filtered and sorted",
    "show": "a run, a sweep or a search on one screen",
    "watch": "a run or a sweep, live, from another terminal",
    "compare": "the settings of several sweeps in one table",
    "report": "a run, a sweep, a search or any folders of runs as one HTML file",
    "track": "tells finished runs to a tracker, afterwards",
    "diff": "two runs side by side, only what differs",
    "best": "the best run in a folder, by its monitored metric",
    "label": "sets the tags and the note of runs, and archives them, at any time",
    "prune": "deletes all but the best checkpoint of finished runs",
    "evaluate": "a run's test or validation figures again, from its folder",
}
RENAMED = {  # until the next release
    "tag": "label PATH +TAG -TAG",
    "note": "label PATH --note TEXT",
    "archive": "label PATH --archive",
    "replay": "verify RUN_DIR --output NEW_DIR",
}
