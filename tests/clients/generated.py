"""Uses the client that openapi-python-client made of a server's API document, and checks the types of what it returns.

  generated.py ADDRESS PICTURE          (the package dino_client lies beside this process, in its working directory)
"""

import base64
import io
import sys

sys.path.insert(0, ".")
from dino_client import Client
from dino_client.api.collections import create_collection, search
from dino_client.api.items import list_items, upsert_items
from dino_client.api.pictures import classify, embed, segment
from dino_client.models import (
    ClassifyResponse,
    CollectionInfo,
    CreateCollectionRequest,
    EmbedFilesBody,
    EmbedRequest,
    EmbedResponse,
    ErrorCode,
    Filter,
    ItemPage,
    MaskFormat,
    Pooling,
    Problem,
    SearchRequest,
    SearchResponse,
    SegmentResponse,
    UpsertItem,
    UpsertRequest,
    UpsertResponse,
)
from dino_client.types import File


def typed(value, kind):
    assert isinstance(value, kind), f"{kind.__name__} was expected, not {value}"
    return value


client = Client(base_url=f"http://{sys.argv[1]}", raise_on_unexpected_status=True)
with open(sys.argv[2], "rb") as file:
    picture = file.read()
text = base64.b64encode(picture).decode()


def raw():
    return File(payload=io.BytesIO(picture), file_name="picture.png", mime_type="image/png")


# The three forms of a body, and options in the query or in the body.
one = typed(embed.sync(client=client, body=raw()), EmbedResponse)
vector = one.embeddings[0]
assert len(vector) == one.dim and all(isinstance(number, float) for number in vector), one
assert typed(embed.sync(client=client, body=EmbedRequest(images=[text, text])), EmbedResponse).embeddings == [vector, vector]
assert typed(embed.sync(client=client, body=EmbedFilesBody(image=[raw(), raw()])), EmbedResponse).embeddings == [vector, vector]
wide = typed(embed.sync(client=client, body=raw(), pooling=Pooling.CLS_MEAN), EmbedResponse)
assert wide.dim == 2 * one.dim and wide.pooling == Pooling.CLS_MEAN, wide
# The model has two blocks, and gives the tokens of the last one.
assert typed(embed.sync(client=client, body=raw(), layer=2), EmbedResponse).embeddings == [vector]
assert typed(embed.sync(client=client, body=EmbedRequest(images=[text], layer=1)), Problem).code == ErrorCode.MODEL_LACKS_OUTPUT
problem = typed(embed.sync(client=client, body=raw(), model="none"), Problem)
assert problem.code == ErrorCode.UNKNOWN_MODEL and problem.status == 404, problem

typed(create_collection.sync("shelf", client=client, body=CreateCollectionRequest(model="tiny-model")), CollectionInfo)
items = [UpsertItem(id="a", image=text, labels=["cup"]), UpsertItem(id="b", vector=[-number for number in vector], labels=["bowl"])]
assert typed(upsert_items.sync("shelf", client=client, body=UpsertRequest(items=items)), UpsertResponse).ids == ["a", "b"]
assert [item.id for item in typed(list_items.sync("shelf", client=client), ItemPage).items] == ["a", "b"]
found = typed(search.sync("shelf", client=client, body=SearchRequest(vector=vector, filter_=Filter(field="label", in_=["bowl"]))), SearchResponse)
assert [neighbor.id for neighbor in found.results[0].neighbors] == ["b"], found

result = typed(classify.sync(client=client, body=raw(), collection="shelf", k=1), ClassifyResponse).results[0]
assert (result.label, result.classes[0].score, result.neighbors[0].id) == ("cup", 1.0, "a"), result

masks = typed(segment.sync(client=client, body=raw(), format_=MaskFormat.RLE), SegmentResponse).results[0]
assert masks.masks[0].rle.size == [masks.height, masks.width] and masks.masks[0].area > 0, masks
