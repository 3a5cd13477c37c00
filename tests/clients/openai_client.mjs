// Prints the vectors of a picture that OpenAI's own client gets, as JSON: whole, and cut to 8 dimensions.
//   openai_client.mjs ADDRESS PICTURE FOLDER
import assert from "node:assert";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [address, path, folder] = process.argv.slice(2);
const OpenAI = createRequire(`${folder}/`)("openai");
const client = new OpenAI({ baseURL: `http://${address}/v1`, apiKey: "none" });
const picture = "data:image/png;base64," + readFileSync(path).toString("base64");
const whole = await client.embeddings.create({ model: "tiny-model", input: [picture, picture] });
const cut = await client.embeddings.create({ model: "tiny-model", input: picture, dimensions: 8, encoding_format: "float" });
console.log(JSON.stringify([whole, cut].map((answer) => answer.data.map((entry) => entry.embedding))));
await assert.rejects(client.embeddings.create({ model: "no such model", input: picture }), (error) => error.code === "unknown_model");
