"""Prints the vectors of a picture that OpenAI's own client gets, as JSON: whole, and cut to 8 dimensions.

  openai_client.py ADDRESS PICTURE
"""

import base64
import json
import sys

import openai

client = openai.OpenAI(base_url=f"http://{sys.argv[1]}/v1", api_key="none")
with open(sys.argv[2], "rb") as file:
    picture = "data:image/png;base64," + base64.b64encode(file.read()).decode()
assert [model.id for model in client.models.list()] == ["tiny-model"]
answers = [client.embeddings.create(model="tiny-model", input=[picture, picture])]
answers.append(client.embeddings.create(model="tiny-model", input=picture, dimensions=8, encoding_format="float"))
print(json.dumps([[entry.embedding for entry in answer.data] for answer in answers]))
try:
    client.embeddings.create(model="no such model", input=picture)
except openai.NotFoundError as error:
    assert error.code == "unknown_model", error
else:
    sys.exit("a model that is not there was found")
