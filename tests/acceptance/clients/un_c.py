"""A client with the habits of the published C one, written from the wire facts alone.

No JSON parser: values are found by looking for `"name":"` in the text, so a blank after a colon or
a comma would blind it (section 1.7).  It insists on exact statuses, leaves the query out of what
it signs for some calls (section 1.3, quirk 6), and signs and sends `{}` for others.
"""

import hashlib
import hmac
import http.client
import time
import urllib.parse

API_BASE = "https://api.unsandbox.com"


def find_text(text, name):
    """The string after `"name":"`, as a substring parser sees it."""
    start = text.find(f'"{name}":"')
    if start < 0:
        return None
    start += len(name) + 4
    end = start
    while end < len(text) and text[end] != '"':
        end += 2 if text[end] == "\\" else 1
    return text[start:end].replace("\\n", "\n").replace('\\"', '"').replace("\\\\", "\\")


def find_number(text, name):
    """The integer after `"name":`."""
    start = text.find(f'"{name}":')
    if start < 0:
        return None
    digits = text[start + len(name) + 3 :]
    end = 0
    while end < len(digits) and (digits[end].isdigit() or digits[end] == "-"):
        end += 1
    return int(digits[:end]) if end else None


class Client:
    """The command-line client's calls."""

    def __init__(self, public_key, secret_key):
        self.public_key = public_key
        self.secret_key = secret_key

    def request(self, method, path, body="", signed_path=None, media="application/json"):
        """(status, text)."""
        timestamp = str(int(time.time()))
        message = f"{timestamp}:{method}:{signed_path or path}:{body}"
        signature = hmac.new(self.secret_key.encode(), message.encode(), hashlib.sha256)
        target = urllib.parse.urlsplit(API_BASE)
        kind = (
            http.client.HTTPSConnection if target.scheme == "https" else http.client.HTTPConnection
        )
        connection = kind(target.hostname, target.port, timeout=120)
        connection.request(
            method,
            path,
            body or None,
            {
                "Authorization": f"Bearer {self.public_key}",
                "X-Timestamp": timestamp,
                "X-Signature": signature.hexdigest(),
                "Content-Type": media,
                "User-Agent": "un-cli/2.0",
            },
        )
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        return response.status, text

    def expect(self, statuses, method, path, body="", signed_path=None, media="application/json"):
        status, text = self.request(method, path, body, signed_path, media)
        if status not in statuses:
            reason = find_text(text, "error") or find_text(text, "message")
            raise RuntimeError(f"{method} {path}: HTTP {status}: {reason}")
        return text

    def validate(self):
        text = self.expect((200,), "POST", "/keys/validate")
        return '"valid":true' in text, find_number(text, "tier")

    def execute(self, language, code):
        escaped = code.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        body = f'{{"language":"{language}","code":"{escaped}"}}'
        text = self.expect((200,), "POST", "/execute", body)
        return find_text(text, "stdout"), find_number(text, "exit_code")

    def create_session(self, audited=False):
        path = "/sessions?audit=1" if audited else "/sessions"
        body = '{"network_mode":"zerotrust","shell":"bash","multiplexer":"tmux"}'
        text = self.expect((200, 201), "POST", path, body, signed_path="/sessions")
        return find_text(text, "session_id") or find_text(text, "id")

    def session_id_of(self, container_name):
        """Looked up by walking the list: each session is the text after its opening brace."""
        text = self.expect((200,), "GET", "/sessions")
        if '"sessions":[' not in text:
            raise RuntimeError("the list does not begin where it is looked for")
        for part in text.split('"sessions":[')[1].split("},{"):
            if find_text(part, "container_name") == container_name:
                return find_text(part, "session_id") or find_text(part, "id")
        return None

    def container_of(self, session_id):
        return find_text(self.expect((200,), "GET", f"/sessions/{session_id}"), "container_name")

    def session_state(self, session_id):
        text = self.expect((200,), "GET", f"/sessions/{session_id}")
        return find_text(text, "status") or find_text(text, "state")

    def freeze(self, session_id):
        self.expect((200,), "POST", f"/sessions/{session_id}/freeze", "{}")

    def unfreeze(self, session_id):
        self.expect((200,), "POST", f"/sessions/{session_id}/unfreeze", "{}")

    def boost(self, session_id):
        self.expect((200,), "POST", f"/sessions/{session_id}/boost", '{"vcpu":2}')

    def session_snapshot(self, session_id, name):
        path = f"/sessions/{session_id}/snapshot"
        return find_text(self.expect((200, 201), "POST", path, f'{{"name":"{name}"}}'), "id")

    def restore(self, snapshot_id):
        self.expect((200,), "POST", f"/snapshots/{snapshot_id}/restore")

    def create_service(self, name, script):
        body = f'{{"name":"{name}","ports":[8080],"bootstrap_content":"{script}"}}'
        text = self.expect((200, 201), "POST", "/services", body)
        return find_text(text, "service_id") or find_text(text, "id")

    def service_state(self, service_id):
        text = self.expect((200,), "GET", f"/services/{service_id}")
        return find_text(text, "status") or find_text(text, "state")

    def service_execute(self, service_id, command):
        """Exactly 202 with a job, which is then polled."""
        path = f"/services/{service_id}/execute"
        text = self.expect((202,), "POST", path, f'{{"command":"{command}","timeout":30000}}')
        job_id = find_text(text, "job_id")
        for _ in range(60):
            text = self.expect((200,), "GET", f"/jobs/{job_id}")
            if find_text(text, "status") in ("completed", "failed", "timeout", "cancelled"):
                return find_text(text, "stdout"), find_number(text, "exit_code")
            time.sleep(0.5)
        raise RuntimeError("the job did not end")

    def set_vault(self, service_id, text):
        """A PUT of plain text, signed over the text."""
        self.expect((200,), "PUT", f"/services/{service_id}/env", text, media="text/plain")

    def export_vault(self, service_id):
        path = f"/services/{service_id}/env"
        return self.expect((200,), "GET", f"{path}?format=export", signed_path=path)

    def publish(self, service_id, name):
        body = f'{{"source_type":"service","source_id":"{service_id}","name":"{name}"}}'
        text = self.expect((200, 201), "POST", "/images", body)
        return find_text(text, "image_id") or find_text(text, "id")

    def owned_images(self):
        text = self.expect((200,), "GET", "/images?filter=owned", signed_path="/images")
        return text.split('"images":[')[1]

    def spawn(self, image_id, name):
        body = f'{{"name":"{name}","ports":"8080"}}'
        text = self.expect((200, 201), "POST", f"/images/{image_id}/spawn", body)
        return find_text(text, "service_id")

    def delete(self, kind, thing_id, query=""):
        path = f"/{kind}/{thing_id}"
        return self.expect((200,), "DELETE", path + query, signed_path=path)
