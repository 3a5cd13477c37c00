// Sends 25 MB where the answer is known before they have arrived, and prints the status and code of each answer.
//   early.mjs ADDRESS
const [address] = process.argv.slice(2);
const body = new Uint8Array(25 << 20);
const routes = [["POST", "/nothing", "image/png"], ["PUT", "/embed", "image/png"], ["POST", "/embed", "image/png"], ["POST", "/embed", "text/plain"]];
const answers = [];
for (let round = 0; round < 3; round += 1) {
  for (const [method, path, kind] of routes) {
    const answer = await fetch(`http://${address}${path}`, { method, body, headers: { "content-type": kind } });
    answers.push([answer.status, (await answer.json()).code]);
  }
}
console.log(JSON.stringify(answers));
