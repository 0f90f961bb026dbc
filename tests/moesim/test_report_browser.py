"""The pages in a real browser: nothing in the console, nothing asked of any network."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from moesim.report import html
from moesim.report import validation_page as validations
from tests.moesim.report_example import example_comparison, example_run, on_plain
from tests.moesim.validation_example import example_validation

run_page, whatif_page = on_plain(html.run_page), on_plain(html.whatif_page)
validation_page = on_plain(validations.validation_page)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# What the browser asks for by itself, whatever the page.
OWN_HOSTS = ("google.com", "googleapis.com", "gvt1.com", "gstatic.com")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH"),
]


def opened(page: str, folder: Path) -> tuple[str, list[str], set[str]]:
    """The document after loading, lines of the console, and the hosts that were asked."""
    source, log = folder / "page.html", folder / "net.json"
    source.write_text(page, encoding="utf-8")
    done = subprocess.run(
        [
            str(CHROMIUM),
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            # No name resolves: whatever is asked is noted, nothing leaves the machine.
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={folder / 'profile'}",
            *("--enable-logging=stderr", f"--log-net-log={log}", "--virtual-time-budget=2000"),
            *("--dump-dom", source.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    hosts = set()
    for event in json.loads(log.read_text(encoding="utf-8"))["events"]:
        url = urlsplit(str(event.get("params", {}).get("url", "")))
        if url.scheme in ("http", "https", "ws", "wss") and not str(url.hostname).endswith(OWN_HOSTS):
            hosts.add(str(url.hostname))
    return done.stdout, console, hosts


@pytest.mark.parametrize("kind", ["run", "whatif", "validation"])
def test_a_page_loads_silently_and_alone(tmp_path: Path, kind: str) -> None:
    result, timeline, work = example_run()
    comparison = example_comparison(result)
    page = {
        "run": lambda: run_page(result, timeline, work, comparison),
        "whatif": lambda: whatif_page(comparison),
        "validation": lambda: validation_page(*example_validation()),
    }[kind]()
    document, console, hosts = opened(page, tmp_path)
    assert document.rstrip().endswith("</html>")
    assert document.count("<svg") == page.count("<svg") > 0
    assert console == []
    assert hosts == set()


def test_the_watch_notices_errors_and_requests(tmp_path: Path) -> None:
    page = "<!doctype html><img src='http://elsewhere.invalid/x.png'><script>console.error('seen')</script>"
    _, console, hosts = opened(page, tmp_path)
    assert any("seen" in line for line in console)
    assert hosts == {"elsewhere.invalid"}
