"""Hugging Face's own client beside ours: reads what we fetched, or fetches what we read.

  client.py read MODEL FILE…     prints the path of each file, from the cache alone
  client.py fetch MODEL          fetches all of it, and prints the folder
"""

import os
import sys

verb, model, *files = sys.argv[1:]
if verb == "read":
    os.environ["HF_HUB_OFFLINE"] = "1"

from huggingface_hub import hf_hub_download, scan_cache_dir, snapshot_download, try_to_load_from_cache

if verb == "fetch":
    print(snapshot_download(model))
else:
    for file in files:
        print(hf_hub_download(model, file))
    print(snapshot_download(model))
    # What transformers asks for and the repository does not have is known not to be there.
    assert not isinstance(try_to_load_from_cache(model, "preprocessor_config.json"), (str, type(None)))
    cache = scan_cache_dir()
    assert not cache.warnings, cache.warnings
    (repository,) = cache.repos
    (revision,) = repository.revisions
    assert revision.refs == {"main"}, revision.refs
    assert {file.file_name for file in revision.files} == set(files), revision.files
