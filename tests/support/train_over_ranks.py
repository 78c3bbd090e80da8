"""Run command lines of the example one after the other, in every process of torchrun.

Arguments: a JSON file with the command lines, in which ``{rank}`` stands for the rank, and a
folder for the list of exit codes of every rank.
"""

import json
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import train_retrieval
from process_group import joined
from scenes import load_scenes


def main() -> None:
    commands, folder = map(Path, sys.argv[1:])
    rank = os.environ["RANK"]
    few_scenes = load_scenes(train=40, dev=20, test=10)
    train_retrieval.load_scenes = lambda: few_scenes
    with joined() as processes:
        train_retrieval.joined = lambda: nullcontext(processes)  # one group for all commands
        codes = [
            train_retrieval.main([part.replace("{rank}", rank) for part in command])
            for command in json.loads(commands.read_text())
        ]
    (folder / f"codes{rank}.json").write_text(json.dumps(codes))
    # The last exchange was just now. A thread of gloo that frees its tensor while the interpreter
    # ends would abort the process.
    time.sleep(0.2)


if __name__ == "__main__":
    main()
