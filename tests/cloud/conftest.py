"""A bucket of each store: a server of this process that answers as the store does.

Requests go through the clients that a run uses: gcsfs or s3fs, and TensorStore.
"""

import dataclasses
import importlib.util

import pytest

from maxfdl import bucket
from maxfdl.paths import as_path
from tests.cloud.fake_gcs import FakeGcs
from tests.cloud.fake_s3 import FakeS3
from tests.cloud.store import FakeStore

FAKES = {"gs": FakeGcs, "s3": FakeS3}


@dataclasses.dataclass
class Bucket:
    """Args:
    scheme: Of its URLs.
    store: The server.
    root: `scheme://bucket`, a path.
    """

    scheme: str
    store: FakeStore

    @property
    def root(self):
        return as_path(f"{self.scheme}://bucket")

    def at(self, name):
        return as_path(f"{self.scheme}://{name}")


@pytest.fixture(
    scope="session", params=["gs", pytest.param("s3", marks=pytest.mark.slow)]
)
def server(request):
    if importlib.util.find_spec(bucket.PACKAGES[request.param]) is None:
        pytest.skip(f"{bucket.PACKAGES[request.param]} is not installed")
    store = FAKES[request.param]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", store.url)
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", store.url)
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        patch.setenv("NO_GCE_CHECK", "true")
        patch.setenv("AWS_ENDPOINT_URL", store.url)
        patch.setenv("AWS_ACCESS_KEY_ID", "id")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "key")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield request.param, store
    store.close()


@pytest.fixture
def cloud(server, tmp_path, monkeypatch):
    """An empty bucket; what is copied from it goes to a cache of this test alone."""
    scheme, store = server
    store.objects.clear()
    store.requests.clear()
    monkeypatch.setenv("MAXFDL_CACHE", str(tmp_path / "cache"))
    return Bucket(scheme, store)
