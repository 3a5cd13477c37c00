"""Embeds pictures with Spark: one dino-server for each task.

    spark-submit examples/spark_embed.py PICTURES OUT --program target/release/dino-server --model models/demo

PICTURES is a folder; OUT becomes a folder of Parquet files with the columns path, embedding and error. Needs pyspark and pyarrow.
"""

import argparse
import itertools
import subprocess
import threading
from collections.abc import Iterator

import pyarrow
from pyspark.sql import SparkSession

# Spark reads lists of any length alone.
ANSWERS = pyarrow.schema({"path": pyarrow.string(), "embedding": pyarrow.list_(pyarrow.float32()), "error": pyarrow.string()})


def embed(command: list[str]):
    """A function that answers the record batches of a task."""

    def answers(batches: Iterator[pyarrow.RecordBatch]) -> Iterator[pyarrow.RecordBatch]:
        first = next(batches, None)
        if first is None:
            return
        failures = []

        def send() -> None:
            # The process takes the next rows while it embeds others, and no more.
            try:
                with process.stdin, pyarrow.ipc.new_stream(process.stdin, first.schema) as writer:
                    for batch in itertools.chain([first], batches):
                        writer.write_batch(batch)
                        process.stdin.flush()
            except Exception as error:
                failures.append(error)

        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            sender = threading.Thread(target=send, daemon=True)
            sender.start()
            try:
                for batch in pyarrow.ipc.open_stream(process.stdout):
                    yield pyarrow.RecordBatch.from_arrays([batch[field.name].cast(field.type) for field in ANSWERS], schema=ANSWERS)
            except BaseException:
                # Also where Spark wants no more answers. The end of the `with` waits for the process.
                process.kill()
                raise
            sender.join()
        # A stream that just stops looks like one that is complete. Spark runs a task that fails again.
        if process.returncode:
            raise RuntimeError(f"{command[0]} ended with exit code {process.returncode}")
        if failures:
            raise failures[0]

    return answers


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("pictures")
    parser.add_argument("out")
    parser.add_argument("--program", default="dino-server")
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, default=1, help="sessions of each task, each on a core (spark.task.cpus)")
    parser.add_argument("--rows", type=int, default=64, help="pictures in a record batch")
    arguments = parser.parse_args()
    spark = SparkSession.builder.appName("embed").getOrCreate()
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", arguments.rows)
    # Tasks are made of bytes, as if each file were 4 MB longer: less than that, and a task has thousands of pictures.
    spark.conf.set("spark.sql.files.openCostInBytes", 64 << 10)
    pictures = spark.read.format("binaryFile").option("recursiveFileLookup", True).load(arguments.pictures)
    command = [arguments.program, "embed", "--arrow", "-", "--image-column", "content", "--model", arguments.model]
    command += ["--sessions", str(arguments.threads)]
    embedded = pictures.select("path", "content").mapInArrow(embed(command), "path string, embedding array<float>, error string")
    embedded.write.mode("overwrite").parquet(arguments.out)
    spark.stop()


if __name__ == "__main__":
    main()
