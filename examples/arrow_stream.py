"""Writes the pictures of a folder to stdout as an Arrow stream, for `dino-server embed --arrow -`.

    python3 examples/arrow_stream.py PICTURES | dino-server embed --arrow - --model models/demo >vectors.arrows

Each record batch has some pictures, so that the first ones are embedded while others are read. A file that cannot be read is answered with
an error. Needs pyarrow.
"""

import pathlib
import sys

import pyarrow

ROWS = 32


def read(path: pathlib.Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError as error:
        print(f"{path}: {error.strerror}", file=sys.stderr)
        return None


def main() -> None:
    schema = pyarrow.schema({"path": pyarrow.string(), "image": pyarrow.binary()})
    folder = pathlib.Path(sys.argv[1])
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    # Not in a `with`, which marks the end of the stream also where an exception ends it.
    out = pyarrow.ipc.new_stream(sys.stdout.buffer, schema)
    for start in range(0, len(paths), ROWS):
        some = paths[start : start + ROWS]
        columns = [[str(path.relative_to(folder)) for path in some], [read(path) for path in some]]
        out.write_batch(pyarrow.record_batch(columns, schema=schema))
    out.close()


if __name__ == "__main__":
    main()
