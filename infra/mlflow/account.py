"""Creates the MLflow user that driver and trials log in as, or gives it a new password; idempotent.

Reads MLFLOW_TRACKING_URI, MLFLOW_AUTH_ADMIN_PASSWORD, MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.
"""

import base64
import http.client
import json
import os
import sys
import urllib.error
import urllib.request


def ask(
    path: str, user: str, password: str, body: dict[str, str] | None = None, method: str | None = None
) -> tuple[int, str]:
    """(status, answer) of MLflow's REST interface."""
    login = base64.b64encode(f"{user}:{password}".encode()).decode()
    request = urllib.request.Request(
        f"{os.environ['MLFLOW_TRACKING_URI'].rstrip('/')}/api/2.0/mlflow/{path}",
        headers={"Authorization": f"Basic {login}", "Content-Type": "application/json"},
        data=json.dumps(body).encode() if body else None,
        method=method,
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        sys.exit(
            f"MLflow does not respond: {getattr(error, 'reason', error)}. Fix: start it, or correct MLFLOW_TRACKING_URI"
        )


user, password = os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]
if ask("experiments/search?max_results=1", user, password)[0] != 200:
    admin, login = os.environ["MLFLOW_AUTH_ADMIN_PASSWORD"], {"username": user, "password": password}
    status, said = ask("users/create", "admin", admin, login)
    if status != 200:  # it is there, with a former password
        status, said = ask("users/update-password", "admin", admin, login, "PATCH")
    if status != 200:
        sys.exit(f"MLflow does not let its user {user} in ({status}): {said[:300]}")
