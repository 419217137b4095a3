"""A client with the habits of the published Python one, written from the wire facts alone.

It shares nothing with this project: the standard library, and `API_BASE` as a constant in the
source.  Its quirks are those of sections 1.3, 3 and 6.3: JSON with blanks, an empty dict that is
signed as nothing and sent as `{}`, an empty body with a content type, polling with odd delays.
"""

import hashlib
import hmac
import json
import time
import urllib.error
import urllib.request

API_BASE = "https://api.unsandbox.com"
PORTAL_BASE = "https://unsandbox.com"
POLL_DELAYS_MS = [300, 450, 700, 900, 650, 1600, 2000]


class ApiError(Exception):
    """An answer that is no success."""

    def __init__(self, status, text):
        super().__init__(f"HTTP {status}: {text}")
        self.status = status
        self.text = text


def _request(method, path, public_key, secret_key, data=None, base=None):
    # `if data` is false for {} as well: nothing is signed, and `{}` is sent.
    body = json.dumps(data) if data else ""
    timestamp = str(int(time.time()))
    message = f"{timestamp}:{method}:{path}:{body}"
    signature = hmac.new(secret_key.encode(), message.encode(), hashlib.sha256).hexdigest()
    headers = {
        "Authorization": f"Bearer {public_key}",
        "X-Timestamp": timestamp,
        "X-Signature": signature,
        "Content-Type": "application/json",
    }
    content = json.dumps(data).encode() if data is not None else None
    request = urllib.request.Request(  # noqa: S310 - the constant above
        (base or API_BASE) + path, data=content, headers=headers, method=method
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as response:  # noqa: S310
            return json.loads(response.read())
    except urllib.error.HTTPError as error:
        raise ApiError(error.code, error.read().decode()) from None


class Client:
    """The calls of the library, bound to one key."""

    def __init__(self, public_key, secret_key):
        self.keys = (public_key, secret_key)

    def _call(self, method, path, data=None):
        return _request(method, path, *self.keys, data)

    def execute_code(self, language, code, network_mode="zerotrust"):
        body = {"language": language, "code": code, "network_mode": network_mode}
        answer = self._call("POST", "/execute", body)
        if answer.get("job_id") and answer.get("status") in ("pending", "running"):
            return self.wait_for_job(answer["job_id"])
        return answer

    def execute_async(self, language, code):
        return self._call("POST", "/execute", {"language": language, "code": code})["job_id"]

    def wait_for_job(self, job_id):
        for delay_ms in POLL_DELAYS_MS + [2000] * 60:
            job = self._call("GET", f"/jobs/{job_id}")
            if job.get("status") in (None, "completed", "failed", "timeout", "cancelled"):
                return job
            time.sleep(delay_ms / 1000)
        raise ApiError(0, "the job did not end")

    def cancel_job(self, job_id):
        return self._call("DELETE", f"/jobs/{job_id}")

    def list_jobs(self):
        return self._call("GET", "/jobs")["jobs"]

    def languages(self):
        return self._call("GET", "/languages")["languages"]

    def validate_keys(self):
        return self._call("POST", "/keys/validate")

    def create_session(self, **options):
        return self._call("POST", "/sessions", {"shell": "bash", "language": "bash", **options})

    def list_sessions(self):
        return self._call("GET", "/sessions")["sessions"]

    def shell_session(self, session_id, command):
        return self._call("POST", f"/sessions/{session_id}/shell", {"command": command})

    def change(self, kind, thing_id, verb):
        return self._call("POST", f"/{kind}/{thing_id}/{verb}", {})

    def delete(self, kind, thing_id):
        return self._call("DELETE", f"/{kind}/{thing_id}")

    def get(self, kind, thing_id):
        return self._call("GET", f"/{kind}/{thing_id}")

    def create_service(self, name, ports, bootstrap):
        body = {"name": name, "ports": ports}
        is_url = bootstrap.startswith(("http://", "https://"))
        body["bootstrap" if is_url else "bootstrap_content"] = bootstrap
        return self._call("POST", "/services", body)

    def execute_in_service(self, service_id, command):
        answer = self._call("POST", f"/services/{service_id}/execute", {"command": command})
        return self.wait_for_job(answer["job_id"]) if answer.get("job_id") else answer

    def service_logs(self, service_id):
        return self._call("GET", f"/services/{service_id}/logs?all=true")["log"]

    def set_service_env(self, service_id, text):
        return self._call("POST", f"/services/{service_id}/env", {"env": text})

    def export_service_env(self, service_id):
        return self._call("POST", f"/services/{service_id}/env/export", {})

    def session_snapshot(self, session_id, name, ephemeral=False):
        body = {"session_id": session_id, "name": name, "ephemeral": ephemeral}
        return self._call("POST", "/snapshots", body)

    def restore_snapshot(self, snapshot_id):
        return self._call("POST", f"/snapshots/{snapshot_id}/restore", {})

    def clone_snapshot(self, snapshot_id, name):
        body = {"type": "session", "name": name}
        return self._call("POST", f"/snapshots/{snapshot_id}/clone", body)

    def image_publish(self, source_type, source_id, name):
        body = {"source_type": source_type, "source_id": source_id, "name": name}
        return self._call("POST", "/images", body)

    def grant_image_access(self, image_id, trusted_key):
        return self._call("POST", f"/images/{image_id}/grant", {"trusted_api_key": trusted_key})

    def list_images(self, kind=None):
        return self._call("GET", f"/images/{kind}" if kind else "/images")["images"]
