// Checks the resources of Kubernetes' operators (KEDA's ScaledObject, Prometheus' ServiceMonitor) against their schemas.
//   node docker/check_crds.mjs FOLDER_WITH_NODE_MODULES < RESOURCES.json
import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";

const models = (file) => import(pathToFileURL(resolve(process.argv[2], "node_modules/@kubernetes-models", file)));
const { ScaledObject } = await models("keda/keda.sh/v1alpha1/index.mjs");
const { ServiceMonitor } = await models("prometheus-operator/monitoring.coreos.com/v1/index.js");
const kinds = { ScaledObject, ServiceMonitor };
let checked = 0;
for (const resource of JSON.parse(readFileSync(0))) {
  const Kind = kinds[resource?.kind];
  if (!Kind) continue;
  checked += 1;
  try {
    new Kind(resource).validate();
  } catch (error) {
    console.error(`${resource.kind} ${resource.metadata?.name}: ${error.message}`);
    process.exitCode = 1;
  }
}
if (checked === 0) {
  console.error("no resource of an operator was found: has its form changed?");
  process.exitCode = 1;
}
