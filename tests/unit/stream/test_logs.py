import pytest

from stream.logs import redact, redacted

SECRET = "hunter2"  # noqa: S105 the word to look for


@pytest.mark.parametrize(
    "text",
    [
        f"Redis at redis://user:{SECRET}@host:6379/0 did not answer",
        f"redis://:{SECRET}@host",
        f"rediss://user:{SECRET}/with@at@host:6379/0",
        f"s3://AKIA:{SECRET}/slash@bucket/models",
        f"https://{SECRET}@host/path",
        f"s3://bucket/models?region=eu&secret_key={SECRET}&scheme=https",
        f"az://box?SAS_TOKEN={SECRET}",
        f"gs://bucket?x-goog-signature={SECRET}",
    ],
)
def test_credentials_in_urls_are_hidden_wherever_they_stand(text):
    assert SECRET not in redacted(text)
    assert SECRET not in str(redacted({"outer": [text, (text, 1)]}))
    event = redact(None, "info", {"event": text, "detail": {"url": text}})
    assert SECRET not in str(event)


@pytest.mark.parametrize(
    "text",
    [
        "model spacecraft@20261124-1 at s3://bucket/models/spacecraft@20261124-1",
        "metrics can't be served at 127.0.0.1:9464",
        "redis://host:6379/0",
        "s3://bucket/models?region=eu-west-1",
        "who? me&you=us",
    ],
)
def test_what_holds_no_secret_stays_as_it_is(text):
    assert redacted(text) == text


def test_the_host_stays_to_be_seen():
    assert redacted(f"redis://user:{SECRET}@host:6379/0") == "redis://***@host:6379/0"
