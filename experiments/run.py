"""Run the notebook and renew all that it makes: its outputs, the figures, ultimus.pt and both
READMEs.

    python -m experiments.run

A run that fails or is stopped changes nothing. One without CIFAR-10 writes to ``synthetic
stand-in``.
"""

import asyncio
import os
import signal
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import utils
from experiments import readme


class Live(NotebookClient):
    """Shows what a cell prints at once."""

    def output(self, outputs, message, *place):
        if message["msg_type"] == "stream":
            print(message["content"]["text"], end="", flush=True)
        return super().output(outputs, message, *place)


def main():
    before = readme.NOTEBOOK.read_bytes()
    notebook = nbformat.reads(before.decode("utf-8"), as_version=4)
    target = utils.output_folder().resolve()
    with tempfile.TemporaryDirectory(
        prefix=".run-", dir=target
    ) as folder:  # in target: it must be writable
        os.environ["ULTIMUS_OUTPUT"] = folder  # for the kernel
        options = dict(
            timeout=None, coalesce_streams=True, resources={"metadata": {"path": readme.ROOT}}
        )
        client = Live(notebook, **options, extra_arguments=["--log-level=ERROR"])
        client.on_notebook_start = lambda **_: asyncio.get_running_loop().add_signal_handler(
            signal.SIGINT, lambda: asyncio.ensure_future(client.km.interrupt_kernel())
        )  # Ctrl-C ends the cell, as in a browser
        try:
            client.execute()
        except CellExecutionError as error:
            sys.exit(f"{error}\nNothing was changed.")
        on_stand_in = Path(folder, utils.STAND_IN).exists()
        nbformat.write(
            notebook, Path(folder, utils.STAND_IN if on_stand_in else "", readme.NOTEBOOK.name)
        )
        if target == readme.ROOT and not (
            readme.NOTEBOOK.exists() and readme.NOTEBOOK.read_bytes() == before
        ):
            print(
                "The notebook was changed while it ran. It stays as it is, and the results go to a folder."
            )
            target /= "run of the notebook as it was"
        for path in [path for path in Path(folder).rglob("*") if path.is_file()]:
            place = target / path.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)
    if on_stand_in:
        print(
            f"This was no run on CIFAR-10. Its results are in {target / utils.STAND_IN}. Nothing else was changed."
        )
    else:
        print(f"This was a run on CIFAR-10. Its results are in {target}.")
        try:
            if target == readme.ROOT:
                readme.main()
        except ValueError as error:
            print(f"The pages' measured parts stay as they were: {error}")


if __name__ == "__main__":
    main()
