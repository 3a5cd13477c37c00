"""Runs a program of Python with a Ray of two nodes on this machine, which lives as long as the program.

    ray_cluster.py FOLDER PROGRAM ARGUMENT…

FOLDER gets Ray's logs and sockets; its name has to be short.
"""

import os
import runpy
import sys

import ray
from ray.cluster_utils import Cluster

folder, program = sys.argv[1:3]
# Ray notes the cluster's address in a folder of its own, which it makes only for clusters that the command line starts.
os.environ["RAY_TMPDIR"] = folder
os.makedirs(os.path.join(folder, "ray"), exist_ok=True)
node = {"num_cpus": 1, "object_store_memory": 128 << 20, "temp_dir": folder, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=node)
try:
    cluster.add_node(num_cpus=1, object_store_memory=128 << 20)
    os.environ["RAY_ADDRESS"] = cluster.address
    sys.argv = sys.argv[2:]
    runpy.run_path(program, run_name="__main__")
finally:
    ray.shutdown()
    cluster.shutdown()
