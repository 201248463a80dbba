"""The policy files of S3 allow what the code asks for, and nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ACTIONS = {
    "get_object": {"s3:GetObject"},
    "put_object": {"s3:PutObject"},
    "download_file": {"s3:GetObject"},
    "transfers.upload": {"s3:PutObject", "s3:AbortMultipartUpload"},
    "delete_object": {"s3:DeleteObject"},
    "list_objects_v2": {"s3:ListBucket"},
    "list_multipart_uploads": {"s3:ListBucketMultipartUploads"},
    "list_parts": {"s3:ListMultipartUploadParts"},
    "abort_multipart_upload": {"s3:AbortMultipartUpload"},
}
"""Call of boto3 to what it needs, from AWS's list of actions for S3."""


def statements(name: str) -> list[dict]:
    return json.loads((ROOT / "infra" / "s3" / name).read_text())["Statement"]


def allowed(name: str) -> dict[str, set[str]]:
    """Action to the resources on which it is allowed."""
    found: dict[str, set[str]] = {}
    for one in statements(name):
        if one["Effect"] == "Allow":
            for action in one["Action"]:
                found.setdefault(action, set()).update(one["Resource"])
    return found


def used(*modules: str) -> set[str]:
    """Actions that the source of these modules needs; a call that the table above does not know fails."""
    text = "\n".join((ROOT / "tracking" / f"{module}.py").read_text() for module in modules)
    names = set(re.findall(r"(?<!tracker\.)\bclient\.([a-z_0-9]+)\(", text)) - {"get_paginator", "get_experiment"}
    names |= set(re.findall(r'get_paginator\("(\w+)"\)', text)) | set(re.findall(r"transfers\.upload(?=\()", text))
    return set().union(*(ACTIONS[name] for name in names))


def test_the_driver_may_do_what_the_code_does_and_no_more():
    policy = allowed("policy.json")
    assert used("ledger/s3", "upkeep/health", "upkeep/garbage") | {"s3:GetBucketLocation"} == set(policy)
    assert set().union(*policy.values()) == {"arn:aws:s3:::rd3", "arn:aws:s3:::rd3/rd3/*"}, "not MLflow's own"
    [listing] = [one for one in statements("policy.json") if "s3:ListBucket" in one["Action"]]
    assert listing["Condition"] == {"StringLike": {"s3:prefix": ["rd3/*"]}}


def test_a_trial_reads_and_writes_files_and_neither_deletes_nor_sees_the_ledger():
    policy = allowed("policy-trial.json")
    assert "s3:DeleteObject" not in policy
    assert policy["s3:PutObject"] == policy["s3:GetObject"]
    # Where trials put large files and the blocks of sets that several make together.
    assert policy["s3:PutObject"] == {"arn:aws:s3:::rd3/rd3/files/*", "arn:aws:s3:::rd3/rd3/blocks/*"}


@pytest.mark.parametrize("name", ["policy.json", "policy-trial.json"])
def test_nobody_comes_without_tls(name: str):
    [denied] = [one for one in statements(name) if one["Effect"] == "Deny"]
    assert denied["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    assert (denied["Action"], len(denied["Resource"])) == ("s3:*", 2)
