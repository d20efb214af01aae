"""Run the notebook and renew all that it makes: its outputs, the figures, ultimus.pt and both READMEs.

    python -m experiments.run

A run that fails or is stopped changes nothing. One without CIFAR-10 writes to ``synthetic stand-in``.
"""

import asyncio
import os
import shutil
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
    """Shows what a cell prints at once, and ends the cell on Ctrl-C."""

    def output(self, outputs, message, *place):
        if message["msg_type"] == "stream":
            print(message["content"]["text"], end="", flush=True)
        return super().output(outputs, message, *place)

    async def async_start_new_kernel_client(self, **options):
        def stop():
            self.stopping = asyncio.ensure_future(self.km.interrupt_kernel())

        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop)
        return await super().async_start_new_kernel_client(**options)


def main():
    notebook = nbformat.read(readme.NOTEBOOK, as_version=4)
    target = Path(os.environ.get("ULTIMUS_OUTPUT") or readme.ROOT).resolve()
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".run-", dir=target) as folder:  # in target: it must be writable
        os.environ["ULTIMUS_OUTPUT"] = folder  # for the kernel
        try:
            Live(notebook, timeout=None, coalesce_streams=True, resources={"metadata": {"path": readme.ROOT}}).execute()
        except CellExecutionError as error:
            sys.exit(f"{error}\nNothing was changed.")
        on_stand_in = Path(folder, utils.STAND_IN).exists()
        nbformat.write(notebook, Path(folder, utils.STAND_IN if on_stand_in else "", readme.NOTEBOOK.name))
        shutil.copytree(folder, target, dirs_exist_ok=True)
    if on_stand_in:
        print(f"This was no run on CIFAR-10. Its results are in {target / utils.STAND_IN}. Nothing else was changed.")
    else:
        if target == readme.ROOT:
            readme.main()
        print(f"This was a run on CIFAR-10. Its results are in {target}.")


if __name__ == "__main__":
    main()
