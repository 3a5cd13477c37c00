"""Embeds pictures with Ray Data: each of its workers has one dino-server, which stays as long as the worker.

    python3 examples/ray_embed.py PICTURES OUT --program target/release/dino-server --model models/demo --workers 2

PICTURES is a folder, or anything else that Ray Data reads files from; OUT becomes a folder of Parquet files with the columns path,
embedding and error. Needs ray[data] and pyarrow.
"""

import argparse
import subprocess
import sys
import threading

import pyarrow
import ray


class Embed:
    """A dino-server that answers tables with the same rows and their embeddings."""

    def __init__(self, program: str, model: str, threads: int) -> None:
        self.command = [program, "embed", "--arrow", "-", "--image-column", "bytes", "--model", model, "--sessions", str(threads)]
        self.process = None

    def __call__(self, table: pyarrow.Table) -> pyarrow.Table:
        # A new one for the first table, and where the last one was killed, for example for its memory.
        is_new = self.process is None or self.process.poll() is not None
        if is_new:
            self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            if is_new:
                self.reader = None
                self.writer = pyarrow.ipc.new_stream(self.process.stdin, table.schema)
            # Rows are sent while others are answered: a program that nobody reads from does not read either.
            sender = threading.Thread(target=send, args=(table, self.process, self.writer), daemon=True)
            sender.start()
            # The schema comes once, before the first answer.
            self.reader = self.reader or pyarrow.ipc.open_stream(self.process.stdout)
            answers, rows = [], 0
            while rows < table.num_rows:
                answers.append(self.reader.read_next_batch())
                rows += answers[-1].num_rows
            sender.join()
        except BaseException as error:
            # Its other answers are not for the next table. Without it, the sender ends too.
            self.process.kill()
            code = self.process.wait()
            if isinstance(error, (StopIteration, pyarrow.ArrowInvalid, OSError)):
                # It says on stderr what is wrong. Ray asks another worker for these rows.
                raise RuntimeError(f"{self.command[0]} ended with exit code {code}") from error
            raise
        return pyarrow.Table.from_batches(answers, self.reader.schema)


def send(table: pyarrow.Table, process: subprocess.Popen, writer: pyarrow.RecordBatchStreamWriter) -> None:
    try:
        for batch in table.to_batches(max_chunksize=16):
            writer.write_batch(batch)
            process.stdin.flush()
    except Exception as error:
        # The process would wait for rows that do not come, and the worker for their answers.
        print(f"rows cannot be sent: {error}", file=sys.stderr)
        process.kill()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("pictures")
    parser.add_argument("out")
    parser.add_argument("--program", default="dino-server")
    parser.add_argument("--model", required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="sessions of each worker, each on a core")
    parser.add_argument("--rows", type=int, default=128, help="pictures in a table")
    arguments = parser.parse_args()
    context = ray.data.DataContext.get_current()
    context.actor_task_retry_on_errors = [RuntimeError]
    # Reading and writing wait for disks and networks: workers leave a fifth of their cores to them, without which they would never start.
    pictures = ray.data.read_binary_files(arguments.pictures, include_paths=True, num_cpus=0.1)
    embedded = pictures.map_batches(
        Embed,
        fn_constructor_args=(arguments.program, arguments.model, arguments.threads),
        batch_format="pyarrow",
        batch_size=arguments.rows,
        compute=ray.data.ActorPoolStrategy(size=arguments.workers),
        num_cpus=0.8 * arguments.threads,
        max_task_retries=3,
    )
    embedded.write_parquet(arguments.out, ray_remote_args={"num_cpus": 0.1})


if __name__ == "__main__":
    main()
