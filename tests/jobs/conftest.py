"""What tests of several kinds of jobs share."""

import pytest


@pytest.fixture(scope="module")
def nothing_is_downloaded(tmp_path_factory):
    """No weights of LPIPS and Inception on the disk, and nowhere to get them from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("torch")))
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            patch.setenv(name, "http://127.0.0.1:9")
        yield
