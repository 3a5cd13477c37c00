// Uses the types that openapi-typescript made of a server's API document (api.ts, beside this file), with openapi-fetch.
//   generated.js ADDRESS PICTURE
import assert from "node:assert";
import { readFileSync } from "node:fs";
import createClient from "openapi-fetch";
import type { components, paths } from "./api.js";

const [address, path] = process.argv.slice(2) as [string, string];
const client = createClient<paths, "application/json" | "application/problem+json">({ baseUrl: `http://${address}` });
const picture = readFileSync(path);
const images = [picture.toString("base64")];

const embedded = await client.POST("/embed", { body: { images, pooling: "cls_mean", layer: 2 } });
const vectors: components["schemas"]["EmbedResponse"] | undefined = embedded.data;
assert(vectors && embedded.response.status === 200, JSON.stringify(embedded.error));
assert.equal((vectors.embeddings[0] as number[]).length, vectors.dim);

// Bytes as they are, with options in the query.
const raw = await client.POST("/embed", {
  params: { query: { dimensions: 7 } },
  body: picture as unknown as string,
  bodySerializer: (body) => body as unknown as BodyInit,
  headers: { "content-type": "application/octet-stream" },
});
assert.equal(raw.data?.dim, 7, JSON.stringify(raw.error));

const classified = await client.POST("/classify", { body: { images, collection: "shelf", k: 1 } });
const label: string | null | undefined = classified.data?.results[0]?.label;
assert.equal(label, "cup", JSON.stringify(classified.error));

const segmented = await client.POST("/segment", { body: { images, format: "rle", max_objects: 2 } });
const mask: components["schemas"]["Mask"] | undefined = segmented.data?.results[0]?.masks[0];
assert(mask?.rle && mask.rle.counts.length > 0, JSON.stringify(segmented.error));

const refused = await client.POST("/classify", { body: { images, collection: "none" } });
const code: components["schemas"]["ErrorCode"] | undefined = refused.error?.code;
assert.equal(code, "unknown_collection");
