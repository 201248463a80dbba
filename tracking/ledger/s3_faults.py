"""Refusals of S3 servers, by error code, and failures of boto3, by exception.

Codes are those of AWS, MinIO, Ceph and Swift; a response without a code has its HTTP status as the code.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tracking.ledger.faults import Fault, Server, connection_fault, proxy_fault

PERMANENT_STATUSES = {501, 505, 507}
"""HTTP statuses above 500 that a retry does not change: not implemented, version, storage full."""


@dataclass(frozen=True)
class Refusal:
    """An error response of an S3 server."""

    code: str
    status: int = 0
    operation: str = ""
    message: str = ""
    region: str = ""
    """Region of the bucket, if the server named it."""
    header: str = ""
    """Header that the server does not implement, if it named one."""

    @classmethod
    def of(cls, error: Any) -> Refusal:
        """From a ``botocore.exceptions.ClientError``."""
        about, more = error.response.get("Error", {}), error.response.get("ResponseMetadata", {})
        message = str(about.get("Message", ""))
        expected = re.search(r"expecting '([\w-]+)'", message)
        region = about.get("Region") or more.get("HTTPHeaders", {}).get("x-amz-bucket-region")
        status = int(more.get("HTTPStatusCode", 0))
        return cls(
            code=str(about.get("Code") or status or ""),  # a page of a proxy has no code
            status=status,
            operation=error.operation_name,
            message=message,
            region=region or (expected[1] if expected else ""),
            header=str(about.get("Header", "")).lower(),
        )

    @classmethod
    def quoted(cls, text: str) -> Refusal | None:
        """From a text with boto3's message in it, as MLflow passes it on; a missing object is not one."""
        found = re.search(
            r"An error occurred \(([\w.]+)\) when calling the (\w+) operation(?: \(reached max retries: \d+\))?:?(.*)",
            text,
        )
        if found is None or found[1] in ("404", "NoSuchKey"):
            return None
        return cls(code=found[1], operation=found[2], message=found[3].strip())

    @property
    def permission(self) -> str:
        """The permission that the credentials lack, such as ``s3:ListBucket``, if the server names it."""
        found = re.search(r"not authorized to perform: (s3:\w+)", self.message)
        return found[1] if found else ""

    @property
    def uploads(self) -> bool:
        return self.operation in _UPLOADS


_UPLOADS = {"PutObject", "UploadPart", "CreateMultipartUpload", "CompleteMultipartUpload", "DeleteObjects", ""}
"""Operations with a body, which boto3 sends with a checksum; empty: the operation is not known."""


def _may_be_checksums(refusal: Refusal) -> bool:
    """Whether the checksums that boto3 sends with uploads since 1.36 may be what the server refuses."""
    on = os.environ.get("AWS_REQUEST_CHECKSUM_CALCULATION", "").lower() != "when_required"
    named = not refusal.header or refusal.header.startswith(("x-amz-checksum", "x-amz-sdk", "x-amz-trailer"))
    return refusal.uploads and named and on


def _may_ask_for_checksum(refusal: Refusal) -> bool:
    """Whether the server may refuse the header x-amz-checksum-mode, which boto3 sends with downloads since 1.36."""
    on = os.environ.get("AWS_RESPONSE_CHECKSUM_VALIDATION", "").lower() != "when_required"
    return on and refusal.operation in ("GetObject", "HeadObject")


def _may_be_condition(refusal: Refusal) -> bool:
    return refusal.uploads and refusal.header in ("", "if-none-match")


class Row(NamedTuple):
    """A fault and the codes that mean it, separated by spaces; empty: any.  ``when`` is a further condition."""

    codes: str
    message: str
    fix: str
    when: Callable[[Refusal], bool] = lambda _refusal: True
    waits: bool = False


_UNSUPPORTED = "501 NotImplemented XNotImplemented UnsupportedOperation"
_KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_SET_CHECKSUMS = "set AWS_REQUEST_CHECKSUM_CALCULATION=when_required and AWS_RESPONSE_CHECKSUM_VALIDATION=when_required"
_REGION = Fault(
    "The bucket {bucket!r} is in another region than the requests to {endpoint} name ({code}).",
    "set AWS_DEFAULT_REGION to the region of the bucket{region}",
)

ROWS = (
    Row(
        "NoSuchBucket",
        "{endpoint} has no bucket {bucket!r}.",
        "run `rd3 infra init`, or set RD3_ARTIFACTS to another bucket",
    ),
    Row(
        "RequestTimeTooSkewed RequestExpired RequestInTheFuture",
        "{endpoint} rejects requests because its clock and ours differ by minutes ({code}).",
        "set the clock (NTP) on both machines",
    ),
    Row(
        "ExpiredToken ExpiredTokenException InvalidToken TokenRefreshRequired",
        "The S3 session token for {root} has expired or is invalid ({code}).",
        f"get new credentials (`aws sso login`, or new values of AWS_SESSION_TOKEN, {_KEYS}), "
        "unset AWS_SESSION_TOKEN for a permanent key, and run again: finished results are kept",
    ),
    Row(
        "",
        "The KMS key that encrypts the bucket {bucket!r} cannot be used ({code}).",
        "enable that key, and allow our credentials kms:GenerateDataKey and kms:Decrypt on it",
        when=lambda refusal: refusal.code.startswith("KMS.") or "kms:" in refusal.message.lower(),
    ),
    Row(
        "403 AccessDenied Forbidden",
        "{endpoint} does not allow {operation} on {root} ({code}).",
        "allow the key to delete objects (s3:DeleteObject), and use a bucket without object lock",
        when=lambda refusal: refusal.operation.startswith("DeleteObject"),
    ),
    Row(
        "403 AccessDenied Forbidden",
        "{endpoint} does not allow these credentials {permission} on {root} ({code}).",
        "grant that permission to the key; infra/s3/policy.json of the repository lists all that RD3 needs",
        when=lambda refusal: bool(refusal.permission),
    ),
    Row(
        "403 401 AccessDenied SignatureDoesNotMatch InvalidAccessKeyId Forbidden Unauthorized",
        "{endpoint} rejects the S3 credentials for {root} ({code}).",
        f"check {_KEYS}, and the permissions of that key (RD3 needs those of infra/s3/policy.json in the repository)",
    ),
    Row(
        "AccountProblem AllAccessDisabled NotSignedUp UserSuspended",
        "{endpoint} has disabled access for this account ({code}).",
        "ask the provider of that account",
    ),
    Row(
        "301 307 PermanentRedirect TemporaryRedirect AuthorizationHeaderMalformed InvalidRegion "
        "AuthorizationQueryParametersError IllegalLocationConstraintException InvalidLocationConstraint",
        _REGION.message,
        _REGION.fix,
    ),
    Row(
        "InvalidBucketName",
        "{endpoint} does not accept {bucket!r} as the name of a bucket.",
        "use 3 to 63 lower-case letters, digits and hyphens in RD3_ARTIFACTS=s3://bucket/prefix",
    ),
    Row(
        "BucketAlreadyExists",
        "The bucket {bucket!r} belongs to another account at {endpoint}.",
        "set RD3_ARTIFACTS to another bucket",
    ),
    Row(
        "507 QuotaExceeded InsufficientStorage InsufficientCapacity StorageFull XMinioStorageFull TooManyBuckets "
        "XMinioAdminBucketQuotaExceeded XMinioObjectTooManyVersions ServiceQuotaExceededException",
        "{endpoint} has no space left for {root} ({code}).",
        "free space (`rd3 artifacts gc`), raise the quota, or set RD3_ARTIFACTS to another bucket",
    ),
    Row(
        "413 EntityTooLarge MaxMessageLengthExceeded RequestEntityTooLarge",
        "{endpoint} refuses an object of that size ({code}).",
        "raise the limit of that server, or of the proxy before it (nginx: client_max_body_size 0)",
    ),
    Row(
        _UNSUPPORTED,
        "{endpoint} does not implement the checksums or the condition If-None-Match of an upload ({code}).",
        f"{_SET_CHECKSUMS}; if they are set, use a server with conditional writes",
        when=lambda refusal: _may_be_checksums(refusal) and _may_be_condition(refusal),
    ),
    Row(
        _UNSUPPORTED,
        "{endpoint} does not implement the condition If-None-Match of an upload ({code}).",
        "use a server with conditional writes: RD3's lease and ledger rely on them",
        when=_may_be_condition,
    ),
    Row(
        "411 MissingContentLength XAmzContentSHA256Mismatch XAmzContentChecksumMismatch BadDigest InvalidDigest "
        f"InvalidArgument InvalidRequest MalformedTrailerError {_UNSUPPORTED}",
        "{endpoint} does not accept the checksums of an upload ({code}).",
        _SET_CHECKSUMS,
        when=_may_be_checksums,
    ),
    Row(
        f"InvalidArgument InvalidRequest {_UNSUPPORTED}",
        "{endpoint} does not accept that a download asks for its checksum ({code}).",
        _SET_CHECKSUMS,
        when=_may_ask_for_checksum,
    ),
    Row(_UNSUPPORTED, "{endpoint} does not implement {operation} ({code}).", "use another S3 server"),
    Row(
        "405 MethodNotAllowed",
        "{endpoint} does not allow {operation} on {root} ({code}).",
        "set AWS_ENDPOINT_URL to the S3 interface of that server, not to its console",
    ),
    Row(
        "429 SlowDown SlowDownRead SlowDownWrite TooManyRequests TooManyRequestsException RequestLimitExceeded "
        "Throttling ThrottlingException RequestThrottled BandwidthLimitExceeded Busy",
        "{endpoint} limits the rate of requests ({code}).",
        "run fewer trials at a time",
        waits=True,
    ),
    Row(
        "504 GatewayTimeout 502 BadGateway",
        "The proxy before {endpoint} gets no response from the S3 server ({code}).",
        "check that server, and the timeouts of the proxy (nginx: proxy_read_timeout)",
        waits=True,
    ),
)
"""The first row that applies counts."""
_OTHER = Fault("{endpoint} failed on {root} ({code}).", "check the log of that server")
_TEMPORARY = {"RequestTimeout", "ServiceUnavailable", "InternalError", "OperationAborted", "XMinioServerNotInitialized"}
"""Codes of other refusals that a retry may change, as it may change those with a status of 500 or more."""


def refused(refusal: Refusal, root: str, endpoint: str) -> Fault:
    """The fault that a refusal means, for objects below ``root``."""
    status = refusal.status or (int(refusal.code) if refusal.code.isdigit() else 0)
    by_proxy = proxy_fault(_server(endpoint)) if refusal.code.isdigit() and status != 404 else None
    # Where a proxy is set for this address, a bare status may come from it.  It surely does for a server on this
    # machine, which no request should reach through a proxy: the only fault of proxies that waiting does not end.
    if by_proxy is not None and not by_proxy.waits:
        return by_proxy
    names = {refusal.code, str(status)} if status in PERMANENT_STATUSES else {refusal.code}
    applying = (row for row in ROWS if (not row.codes or names & set(row.codes.split())) and row.when(refusal))
    temporary = refusal.code in _TEMPORARY or (status >= 500 and status not in PERMANENT_STATUSES)
    row = next(applying, replace(_OTHER, waits=temporary))
    fault = Fault(row.message, row.fix, row.waits).about(
        endpoint=endpoint,
        root=root,
        bucket=urlsplit(root).netloc,
        code=refusal.code or refusal.message or "no reason given",
        region=f" ({refusal.region})" if refusal.region else "",
        operation=refusal.operation or "that",
        permission=refusal.permission,
    )
    return _sentence(fault)


def _sentence(fault: Fault) -> Fault:
    """The fault with a capital where its message begins with a server's name, ``the S3 server ...``."""
    return replace(fault, message=f"T{fault.message[1:]}") if fault.message.startswith("the ") else fault


_EXCEPTIONS = {
    "NoCredentialsError PartialCredentialsError": Fault(
        "There are no S3 credentials for {root}.", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    ),
    "TokenRetrievalError SSOTokenLoadError UnauthorizedSSOTokenError SSOError LoginRefreshRequired": Fault(
        "The AWS login for {root} has expired.", "run `aws sso login{profile}`"
    ),
    "CredentialRetrievalError RefreshWithMFAUnsupportedError MetadataRetrievalError": Fault(
        "The S3 credentials for {root} cannot be obtained: {text}.",
        "check the role or the credential_process of AWS_PROFILE",
    ),
    "ProfileNotFound ConfigNotFound ConfigParseError InvalidConfigError": Fault(
        "S3 cannot be used for {root}: {text}.", "correct AWS_PROFILE, or the profile in ~/.aws/config"
    ),
    "NoRegionError InvalidRegionError": Fault("The region of {root} is not set.", "set AWS_DEFAULT_REGION"),
    "ParamValidationError": Fault(
        "S3 does not accept {root}: {text}.",
        "use 3 to 63 lower-case letters, digits and hyphens as the bucket in RD3_ARTIFACTS=s3://bucket/prefix",
    ),
    "FlexibleChecksumError": Fault(
        "The checksum of an object from {endpoint} does not match its content.",
        "set AWS_RESPONSE_CHECKSUM_VALIDATION=when_required if that server computes other checksums",
    ),
}
"""Names of exceptions of botocore that a retry does not change."""
_NO_RESPONSE = Fault("{server} does not respond ({cause}).", "start it, or correct AWS_ENDPOINT_URL", waits=True)
_CAUSE = re.compile(r"\[Errno -?\d+\] ([^\[\]'\")]+)")
"""The system's words for a failed connection, in the error that botocore wraps: ``Connection refused``."""
_UNUSABLE = Fault("S3 cannot be used for {root}: {text}.", "check the AWS_* variables")


def failed(error: Exception, root: str, endpoint: str, *, connects: bool) -> Fault:
    """The fault behind an exception of boto3 without a response; ``connects``: whether a connection failed."""
    name, text = type(error).__name__, " ".join(str(error).split()).rstrip(".")
    cause = _CAUSE.search(str(getattr(error, "kwargs", {}).get("error", "")))
    facts = {"root": root, "endpoint": endpoint, "text": text, "bucket": urlsplit(root).netloc}
    facts["server"] = _server(endpoint).name
    facts["cause"] = cause[1] if cause else name
    facts["profile"] = f" --profile {profile}" if (profile := os.environ.get("AWS_PROFILE")) else ""
    for names, fault in _EXCEPTIONS.items():
        if name in names.split():
            return _sentence(fault.about(**facts))
    if not connects:
        return _UNUSABLE.about(**facts)
    if "recursion" in text:  # boto3 follows a redirect that names no region until the stack is exhausted
        return _REGION.about(**facts, code="PermanentRedirect", region="")
    return connection_fault(_server(endpoint), text) or _NO_RESPONSE.about(**facts)


def _server(endpoint: str) -> Server:
    """The server at a URL; ``endpoint`` is a name, ``the S3 server ...``, where MLflow alone knows the URL."""
    name = f"T{endpoint[1:]}" if endpoint.startswith("the S3 server") else f"The S3 server {endpoint}"
    return Server(name, endpoint, "AWS_ENDPOINT_URL", "AWS_CA_BUNDLE")


def own_endpoint_fault(endpoint: str) -> Fault | None:
    """The fault of requests that would go to Amazon although MLflow's variable names another S3 server."""
    wanted = os.environ.get("MLFLOW_S3_ENDPOINT_URL", "")
    if not wanted or not _is_amazon(endpoint) or _is_amazon(wanted):
        return None
    return Fault(
        f"MLFLOW_S3_ENDPOINT_URL is {wanted}, but only MLflow reads it, and RD3 would use {endpoint}.",
        f"set AWS_ENDPOINT_URL={wanted} as well",
    )


def _is_amazon(endpoint: str) -> bool:
    return ".amazonaws." in (urlsplit(endpoint).hostname or "")
