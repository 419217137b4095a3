// A client with the habits of the published JavaScript one, written from the wire facts alone:
// compact JSON, `{}` signed and sent for calls without arguments, the query signed, DELETE bodies.
import { createHmac } from "node:crypto";

const API_BASE = "https://api.unsandbox.com";
const DELAYS_MS = [300, 450, 700, 900, 650, 1600, 2000];

export class Client {
  constructor(publicKey, secretKey) {
    this.publicKey = publicKey;
    this.secretKey = secretKey;
  }

  async call(method, path, data) {
    const body = data === undefined ? "" : JSON.stringify(data);
    const timestamp = Math.floor(Date.now() / 1000).toString();
    const message = `${timestamp}:${method}:${path}:${body}`;
    const signature = createHmac("sha256", this.secretKey).update(message).digest("hex");
    const response = await fetch(API_BASE + path, {
      method,
      body: body === "" ? undefined : body,
      headers: {
        Authorization: `Bearer ${this.publicKey}`,
        "X-Timestamp": timestamp,
        "X-Signature": signature,
        "Content-Type": "application/json",
        "User-Agent": "un-js/2.0",
      },
    });
    const text = await response.text();
    if (!response.ok) throw new Error(`HTTP ${response.status}: ${text}`);
    return JSON.parse(text);
  }

  async execute(language, code) {
    const answer = await this.call("POST", "/execute", { language, code });
    return ["pending", "running"].includes(answer.status) ? this.wait(answer.job_id) : answer;
  }

  async wait(jobId) {
    for (let turn = 0; turn < 60; turn += 1) {
      const job = await this.call("GET", `/jobs/${jobId}`);
      if (["completed", "failed", "timeout", "cancelled"].includes(job.status)) return job;
      await new Promise((go) => setTimeout(go, DELAYS_MS[Math.min(turn, DELAYS_MS.length - 1)]));
    }
    throw new Error("the job did not end");
  }
}

function check(what, actual, expected) {
  const [seen, wanted] = [JSON.stringify(actual), JSON.stringify(expected)];
  if (seen !== wanted) throw new Error(`${what}: got ${seen}, expected ${wanted}`);
  console.log(`ok ${what}`);
}

async function scenario(publicKey, secretKey) {
  const un = new Client(publicKey, secretKey);
  const key = await un.call("POST", "/keys/validate", {});
  check("key", [key.valid, typeof key.tier, key.status], [true, "number", "active"]);
  check("execute", (await un.execute("bash", "echo from js")).stdout, "from js\n");
  const failed = await un.execute("bash", "exit 3");
  check("exit code", [failed.exit_code, failed.success], [3, false]);

  const session = await un.call("POST", "/sessions", { shell: "bash", network_mode: "zerotrust" });
  const at = `/sessions/${session.session_id}`;
  check("variable", (await un.call("POST", `${at}/shell`, { command: "x=42" })).exit_code, 0);
  await un.call("POST", `${at}/freeze`, {});
  check("frozen", (await un.call("GET", at)).status, "frozen");
  await un.call("POST", `${at}/unfreeze`, {});
  check("kept", (await un.call("POST", `${at}/shell`, { command: "echo $x" })).stdout, "42\n");

  const service = await un.call("POST", "/services", {
    name: "js-service",
    ports: [8080],
    bootstrap_content: "echo started",
  });
  const where = `/services/${service.service_id}`;
  await un.call("PUT", `${where}/env`, { content: "A=1\nB=two words\n" });
  check("vault", (await un.call("GET", `${where}/env`)).count, 2);
  await un.call("DELETE", `${where}/env`, { keys: ["A"] });
  check("vault, less one", (await un.call("GET", `${where}/env`)).count, 1);
  check("locked", (await un.call("POST", `${where}/lock`, {})).locked, true);
  check("unlocked", (await un.call("POST", `${where}/unlock`, {})).locked, false);

  const snapshot = await un.call("POST", "/snapshots", {
    session_id: session.session_id,
    name: "from js",
  });
  const image = await un.call("POST", "/images", {
    source_type: "snapshot",
    source_id: snapshot.id,
    name: "js image",
  });
  await un.call("POST", `/images/${image.image_id}/grant`, { trusted_api_key: publicKey });
  const trusted = await un.call("GET", `/images/${image.image_id}/trusted`);
  check("trusted", trusted.trusted ?? trusted.trusted_keys, [publicKey]);
  const names = (await un.call("GET", "/images/owned")).images.map((each) => each.id);
  check("owned", names.includes(image.id), true);

  await un.call("DELETE", `/images/${image.id}`);
  await un.call("DELETE", `/snapshots/${snapshot.snapshot_id}`);
  await un.call("DELETE", where);
  check("ended", (await un.call("DELETE", at)).status, "terminated");
  console.log("done");
}

await scenario(process.env.UNSANDBOX_PUBLIC_KEY, process.env.UNSANDBOX_SECRET_KEY);
