"""Run the notebook and renew what it makes: its outputs, the figures, ultimus.pt, both READMEs.

    python -m experiments.run

A run that fails or is stopped changes nothing. One on the stand-in writes to a folder of its own.
"""

import asyncio
import os
import signal
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

import utils
from experiments import readme


class Live(NotebookClient):
    """Shows what a cell prints at once."""

    def output(self, outputs, message, *place):
        if message["msg_type"] == "stream":
            print(message["content"]["text"], end="", flush=True)
        return super().output(outputs, message, *place)


STOP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP  # Ctrl-C, a shutdown, a closed terminal


def execute(notebook, folder):
    """Run all cells, without the user's IPython profile. Their results go to ``folder``."""
    client = Live(
        notebook,
        timeout=None,
        coalesce_streams=True,
        resources={"metadata": {"path": readme.ROOT}},
        extra_arguments=["--log-level=ERROR"],
    )

    def on_start(**_):  # a signal ends the cell, as in a browser
        for name in [name for name in STOP if signal.getsignal(name) != signal.SIG_IGN]:  # nohup
            stop = lambda: asyncio.ensure_future(client.km.interrupt_kernel())  # noqa: E731
            asyncio.get_running_loop().add_signal_handler(name, stop)

    client.on_notebook_start = on_start
    with tempfile.TemporaryDirectory() as profile:
        os.environ.update(ULTIMUS_OUTPUT=folder, IPYTHONDIR=profile)  # for the kernel
        client.execute()


def main():
    sys.stdout.reconfigure(errors="replace")  # a terminal may not know the bar's characters
    before = readme.NOTEBOOK.read_bytes()
    notebook = nbformat.reads(before.decode("utf-8"), as_version=4)
    target = utils.output_folder().resolve()
    with tempfile.TemporaryDirectory(prefix=".run-", dir=target) as folder:  # must be writable
        try:
            execute(notebook, folder)
        except (CellExecutionError, DeadKernelError) as error:
            sys.exit(f"{error}\nNothing was changed.")
        on_stand_in = Path(folder, utils.STAND_IN).exists()
        mark = utils.STAND_IN if on_stand_in else ""
        nbformat.write(notebook, Path(folder, mark, readme.NOTEBOOK.name))
        there = readme.NOTEBOOK.exists() and readme.NOTEBOOK.read_bytes() == before
        if target == readme.ROOT and not there:
            print("The notebook was changed while it ran. It stays as it is.")
            target /= "run of the notebook as it was"
        for path in [path for path in Path(folder).rglob("*") if path.is_file()]:
            place = target / path.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)
    if on_stand_in:
        print(f"This was no run on CIFAR-10. Its results are in {target / mark}, and only there.")
        return
    print(f"This was a run on CIFAR-10. Its results are in {target}.")
    try:
        if target == readme.ROOT:
            readme.main()
    except ValueError as error:
        print(f"The pages' measured parts stay as they were: {error}")


if __name__ == "__main__":
    main()
