"""The documentation page in a real browser."""

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from tests.support import serving, stub_version

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--disable-quic", "--virtual-time-budget=10000"),
    # Whatever is not this machine does not exist: the page must not need it.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


@pytest.mark.browser
async def test_the_documentation_page_shows_the_endpoints_offline(
    tmp_path: Path,
) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        if os.environ.get("CI"):
            pytest.fail("CI needs chromium for the browser tests")
        pytest.skip("no chromium on this machine")
    stub_version(tmp_path)
    async with serving(tmp_path) as served:
        process = await asyncio.create_subprocess_exec(
            browser,
            *FLAGS,
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
            f"{served.client.base_url}/docs",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        output, _ = await asyncio.wait_for(process.communicate(), timeout=60)
    page = output.decode()
    for path in ("/classify", "/models/{name}/graph.svg", "/readyz"):
        assert f'data-path="{path}"' in page
