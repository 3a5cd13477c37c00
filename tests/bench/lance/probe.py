"""Whether Lance keeps what collections promise, on a folder and on a SeaweedFS that speaks S3.

    make bench-lance

An upsert by id has to be atomic and never double, an answered write has to be found by all and to outlive a killed storage, and servers
write one item at a time. Each part prints one line of figures. Nothing here is asserted: docs/scale.md says what was decided.
"""

import argparse
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path

# Compaction that loses to a writer is counted here.
os.environ.setdefault("LANCE_LOG", "error")

import lance
import numpy
import pyarrow

DIM = 384
KEY, SECRET, BUCKET = "dino", "dino-secret", "lance"
spawn = multiprocessing.get_context("spawn")

SCHEMA = pyarrow.schema(
    [
        # Without this, Lance looks for no other writer of the same new id.
        pyarrow.field("id", pyarrow.string(), nullable=False, metadata={"lance-schema:unenforced-primary-key": "true"}),
        pyarrow.field("version", pyarrow.int64()),
        pyarrow.field("vector", pyarrow.list_(pyarrow.float32(), DIM)),
    ]
)


def rows(ids, version, seed=0):
    vectors = numpy.random.default_rng(seed).standard_normal((len(ids), DIM), dtype=numpy.float32)
    vectors = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.ravel()), DIM)
    return pyarrow.table([pyarrow.array(ids), pyarrow.array([version] * len(ids)), vectors], schema=SCHEMA)


def make(uri, options, count, with_index):
    made = lance.write_dataset(rows([f"old{i}" for i in range(count)], 0), uri, schema=SCHEMA, storage_options=options)
    if with_index:
        made.create_scalar_index("id", "BTREE")
    return made


def upsert(uri, options, table):
    """One write of a server that looks at the newest state first."""
    merge = lance.dataset(uri, storage_options=options).merge_insert("id")
    merge.when_matched_update_all().when_not_matched_insert_all().execute(table)


def kind(error):
    """The first words of an error, without the numbers in them."""
    return re.sub(r"[0-9]+", "N", str(error))[:60]


def median(times):
    return sorted(times)[len(times) // 2] * 1000


def writer_of_the_same(uri, options, barrier, rounds, number, answers):
    times, errors, stored = [], Counter(), []
    for turn in range(rounds):
        barrier.wait()
        began = time.perf_counter()
        try:
            upsert(uri, options, rows([f"new{turn}"], number, turn))
            stored.append(f"new{turn}")
        except Exception as error:  # noqa: BLE001
            errors[kind(error)] += 1
        times.append(time.perf_counter() - began)
    answers.put((times, errors, stored))


def same_ids(uri, options, with_index, writers=2, rounds=60):
    """Writers that store the same new id at the same moment: how many ids are there twice."""
    make(uri, options, 1000, with_index)
    barrier, answers = spawn.Barrier(writers), spawn.Queue()
    processes = [
        spawn.Process(target=writer_of_the_same, args=(uri, options, barrier, rounds, number, answers)) for number in range(writers)
    ]
    for process in processes:
        process.start()
    told = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    ids = Counter(lance.dataset(uri, storage_options=options).to_table(columns=["id"])["id"].to_pylist())
    doubles = sum(1 for count in ids.values() if count > 1)
    lost = sum(1 for _, _, stored in told for one in stored if one not in ids)
    errors = sum((errors for _, errors, _ in told), Counter())
    times = [one for one_times, _, _ in told for one in one_times]
    index = "with an index on ids" if with_index else "without an index on ids"
    print(f"  {writers} writers of the same new id, {index}: {doubles} of {rounds} ids double, {lost} acknowledged lost, "
          f"errors {dict(errors)}, {median(times):.0f} ms each", flush=True)


def single_upserts(uri, options, count, upserts, with_index):
    """One item at a time, as a server acknowledges them: what each costs, and what they leave."""
    make(uri, options, count, with_index)
    query = numpy.ones(DIM, dtype=numpy.float32)

    def searches():
        found = lance.dataset(uri, storage_options=options)
        times = []
        for _ in range(9):
            began = time.perf_counter()
            found.to_table(nearest={"column": "vector", "q": query, "k": 10, "metric": "cosine"}, columns=["id"])
            times.append(time.perf_counter() - began)
        return median(times)

    before, times = searches(), []
    for number in range(upserts):
        began = time.perf_counter()
        upsert(uri, options, rows([f"one{number}"], 1, number))
        times.append(time.perf_counter() - began)
    after = searches()
    found = lance.dataset(uri, storage_options=options)
    fragments, versions = len(found.get_fragments()), len(found.versions())
    began = time.perf_counter()
    found.optimize.compact_files()
    compacted = time.perf_counter() - began
    tenth = max(upserts // 10, 1)
    index = "with" if with_index else "without"
    print(f"  {upserts} single upserts into {count} items, {index} an index on ids: the first {median(times[:tenth]):.0f} ms, the last "
          f"{median(times[-tenth:]):.0f} ms each; {fragments} fragments, {versions} versions; a search {before:.0f} ms before, {after:.0f} "
          f"after, {searches():.0f} compacted (which took {compacted:.1f} s)", flush=True)


def steady_writer(uri, options, number, stop, answers):
    chance, errors, acknowledged, times = random.Random(number), Counter(), {}, []
    version = 0
    while not stop.is_set():
        version += 1
        name = f"w{number}-{chance.randrange(50)}"
        began = time.perf_counter()
        try:
            upsert(uri, options, rows([name], version, version))
            acknowledged[name] = version
            times.append(time.perf_counter() - began)
        except Exception as error:  # noqa: BLE001
            errors[kind(error)] += 1
            # It may have happened.
            acknowledged.pop(name, None)
            time.sleep(0.05)
    answers.put((acknowledged, errors, times))


def with_writers(uri, options, writers, work):
    make(uri, options, 1000, False)
    stop, answers = spawn.Event(), spawn.Queue()
    processes = [spawn.Process(target=steady_writer, args=(uri, options, number, stop, answers)) for number in range(writers)]
    began = time.perf_counter()
    for process in processes:
        process.start()
    work()
    stop.set()
    told = [answers.get() for _ in processes]
    took = time.perf_counter() - began
    for process in processes:
        process.join()
    stored = lance.dataset(uri, storage_options=options).to_table(columns=["id", "version"]).to_pylist()
    counts, newest = Counter(row["id"] for row in stored), {row["id"]: row["version"] for row in stored}
    lost = sum(1 for known, _, _ in told for name, version in known.items() if newest.get(name, -1) < version)
    doubles = sum(1 for count in counts.values() if count > 1)
    errors = sum((errors for _, errors, _ in told), Counter())
    times = [one for _, _, one_times in told for one in one_times]
    return lost, doubles, errors, times, took


def beside_compaction(uri, options, seconds=15, writers=2):
    """Writers of their own ids beside a loop that compacts."""
    failed, done = Counter(), Counter()

    def compact():
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            try:
                lance.dataset(uri, storage_options=options).optimize.compact_files()
                done["compacted"] += 1
            except Exception as error:  # noqa: BLE001
                failed[kind(error)] += 1
            time.sleep(0.5)

    lost, doubles, errors, times, took = with_writers(uri, options, writers, compact)
    print(f"  {writers} writers of their own ids beside compaction: {len(times) / took:.1f} upserts/s in all, {median(times):.0f} ms each, "
          f"{lost} lost, {doubles} double, errors {dict(errors)}; {dict(done)}, {dict(failed)} failed", flush=True)


class Storage:
    """A SeaweedFS with one bucket."""

    def __init__(self, weed, folder):
        self.weed, self.folder = weed, Path(folder)
        sockets = [socket.socket() for _ in range(8)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        self.ports = [one.getsockname()[1] for one in sockets]
        for one in sockets:
            one.close()
        identity = {"name": "probe", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin", "Read", "Write", "List"]}
        (self.folder / "data").mkdir()
        (self.folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        self.options = {
            "aws_access_key_id": KEY, "aws_secret_access_key": SECRET, "aws_endpoint": f"http://127.0.0.1:{self.ports[6]}",
            "aws_region": "us-east-1", "allow_http": "true", "aws_virtual_hosted_style_request": "false",
        }
        self.start()
        urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{self.ports[4]}/buckets/{BUCKET}/", method="POST"))
        # The first write waits for a volume.
        until = time.monotonic() + 60
        while True:
            try:
                make(f"s3://{BUCKET}/ready.lance", self.options, 1, False)
                return
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)

    def start(self):
        log = open(self.folder / "log", "ab")
        command = [self.weed, "server", f"-dir={self.folder / 'data'}", f"-s3.config={self.folder / 's3.json'}", "-ip=127.0.0.1",
                   "-ip.bind=127.0.0.1", "-filer", "-s3", "-master.volumeSizeLimitMB=64", "-volume.max=20", "-master.telemetry=false",
                   "-s3.port.iceberg=0", "-s3.port.lance=0"]
        for at, name in enumerate(["master.port", "volume.port", "filer.port", "s3.port"]):
            command += [f"-{name}={self.ports[2 * at]}", f"-{name}.grpc={self.ports[2 * at + 1]}"]
        self.server = subprocess.Popen(command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.ports[6]), 1).close()
                return
            except OSError:
                time.sleep(0.05)

    def kill(self):
        self.server.send_signal(signal.SIGKILL)
        self.server.wait()


def killed_storage(storage, uri, rounds):
    """Writers while the storage is killed again and again."""
    def work():
        for number in range(rounds):
            time.sleep(random.Random(number).uniform(0.5, 2))
            storage.kill()
            storage.start()
        time.sleep(3)

    lost, doubles, errors, times, _ = with_writers(uri, storage.options, 2, work)
    print(f"  storage killed {rounds} times under 2 writers: {len(times)} acknowledged, {lost} lost, {doubles} double, errors {dict(errors)}",
          flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weed", required=True, help="SeaweedFS, as docker/seaweedfs.sh fetches it")
    parser.add_argument("--upserts", type=int, default=300)
    parser.add_argument("--kills", type=int, default=10)
    args = parser.parse_args()
    weed = os.path.abspath(args.weed)
    print(f"lance {lance.__version__}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage(weed, folder)
        try:
            for kind, base, options in [("a folder", f"{folder}/lance", None), ("S3 (SeaweedFS)", f"s3://{BUCKET}", storage.options)]:
                print(f"on {kind}", flush=True)
                for with_index in (False, True):
                    same_ids(f"{base}/same{with_index}.lance", options, with_index)
                single_upserts(f"{base}/few.lance", options, 1000, args.upserts, False)
                single_upserts(f"{base}/scan.lance", options, 100_000, args.upserts // 10, False)
                single_upserts(f"{base}/many.lance", options, 100_000, args.upserts // 10, True)
                beside_compaction(f"{base}/compacted.lance", options)
            killed_storage(storage, f"s3://{BUCKET}/killed.lance", args.kills)
        finally:
            storage.kill()
            shutil.rmtree(f"{folder}/lance", ignore_errors=True)


if __name__ == "__main__":
    main()
