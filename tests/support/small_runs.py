"""Training runs that take seconds, for the tests of the examples."""

from records import Options


def small(*arguments: object) -> list[str]:
    sizes = ["--dim", "16", "--batch-size", "16", "--threads", "1"]
    return [*sizes, *map(str, arguments)]


def options(**changes) -> Options:
    base = {"data": "scenes", "loss": "info_nce", "text_encoder": "gru", "epochs": 3}
    base["tokenizer"] = "words"
    sizes = {"batch_size": 16, "dim": 16, "learning_rate": 0.002, "warm_up": 0, "seed": 0}
    return Options(**(base | sizes | changes))
