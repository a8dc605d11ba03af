"""Chromium for tests, driven through its DevTools protocol over a pair of pipes: no driver program, no package.

selenium would add a package with nine dependencies and a second program, chromedriver, whose version must be that of
the browser; playwright brings a browser of its own. The protocol's few commands that tests need are stable, and it also
tells what those libraries hide: every request, every refusal of the page's policy.

Touch it for what a test must see or do in a browser. Used by tests/test_report_browser.py.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import functools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')
FLAGS = (
    '--headless', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
    '--disable-component-update', '--disable-sync', '--disable-extensions', '--disable-dev-shm-usage', '--mute-audio',
    '--hide-scrollbars', '--force-color-profile=srgb', '--remote-debugging-pipe',
    '--no-sandbox',  # root and many containers may not make one; the pages are our own
)  # fmt: skip
PATIENCE_S = 60.0


@functools.cache
def find_chromium() -> str | None:
    """The first that runs: on some systems a script of this name only tells how to install the browser."""
    for path in filter(None, map(shutil.which, NAMES)):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run([path, '--version'], check=True, capture_output=True, timeout=PATIENCE_S)
            return path
    return None


class Browser:
    """One page of a running browser. `problems`: console errors, exceptions and refusals; `requests`: all addresses."""

    def __init__(self, write_fd: int, read_fd: int) -> None:
        self._write_fd, self._read_fd = write_fd, read_fd
        self._received = b''
        self._number = 0
        self._session: str | None = None
        self._events: list[str] = []
        self.problems: list[str] = []
        self.requests: list[str] = []
        target = self.call('Target.createTarget', url='about:blank')['targetId']
        self._session = self.call('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        for domain in ('Page', 'Runtime', 'Log', 'Network'):
            self.call(f'{domain}.enable')

    # ---- the protocol

    def call(self, method: str, **params: object) -> dict:
        """The answer to a command; what happened meanwhile is noted."""
        self._number += 1
        number = self._number
        message = {'id': number, 'method': method, 'params': params}
        if self._session:
            message['sessionId'] = self._session
        data = json.dumps(message).encode() + b'\0'
        while data:
            data = data[os.write(self._write_fd, data) :]
        deadline = time.monotonic() + PATIENCE_S
        while True:
            answer = self._next_message(deadline)
            if answer.get('id') == number:
                if 'error' in answer:
                    raise RuntimeError(f'{method}: {answer["error"]["message"]}')
                return answer['result']
            self._note(answer)

    def _next_message(self, deadline: float) -> dict:
        while b'\0' not in self._received:
            ready, _, _ = select.select([self._read_fd], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self._read_fd, 1 << 20) if ready else b''
            if not data:
                raise TimeoutError('the browser has ended' if ready else f'the browser was silent for {PATIENCE_S} s')
            self._received += data
        message, self._received = self._received.split(b'\0', 1)
        return json.loads(message)

    def _note(self, message: dict) -> None:
        method, params = message.get('method'), message.get('params', {})
        self._events.append(method)
        if method == 'Network.requestWillBeSent':
            self.requests.append(params['request']['url'])
        elif method == 'Runtime.exceptionThrown':
            details = params['exceptionDetails']
            self.problems.append(details.get('exception', {}).get('description', details['text']))
        elif method == 'Runtime.consoleAPICalled' and params['type'] in ('error', 'warning', 'assert'):
            self.problems.append(' '.join(str(each.get('value', each.get('description'))) for each in params['args']))
        elif method == 'Log.entryAdded' and params['entry']['level'] in ('error', 'warning'):
            self.problems.append(f'{params["entry"]["source"]}: {params["entry"]["text"]}')

    # ---- what tests do

    def open(self, path: Path) -> None:
        """Load a file from the disk, and wait until it is there."""
        self._events.clear()
        self.call('Page.navigate', url=path.absolute().as_uri())
        self.wait_for('document.readyState === "complete" && location.protocol === "file:"')

    def evaluate(self, script: str) -> object:
        """The value of an expression in the page; a promise is waited for."""
        answer = self.call('Runtime.evaluate', expression=script, returnByValue=True, awaitPromise=True)
        if 'exceptionDetails' in answer:
            details = answer['exceptionDetails']
            raise RuntimeError(details.get('exception', {}).get('description', details['text']))
        return answer['result'].get('value')

    def wait_for(self, condition: str, patience_s: float = PATIENCE_S) -> None:
        """Until the expression is true; AssertionError when it does not become so."""
        deadline = time.monotonic() + patience_s
        while not self.evaluate(condition):
            if time.monotonic() > deadline:
                raise AssertionError(f'not within {patience_s} s: {condition}; problems: {self.problems}')
            time.sleep(0.05)

    def set_screen(self, width: int, height: int, dark: bool, is_phone: bool = False) -> None:
        """Size in px, colour scheme, and for a phone touch instead of a mouse at two device pixels per pixel."""
        self.call(
            'Emulation.setDeviceMetricsOverride',
            width=width,
            height=height,
            deviceScaleFactor=2 if is_phone else 1,
            mobile=is_phone,
        )
        self.call('Emulation.setTouchEmulationEnabled', enabled=is_phone)
        features = [{'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'}]
        self.call('Emulation.setEmulatedMedia', features=features)

    def press(self, key: str, text: str = '') -> None:
        """A key, down and up, where the focus is."""
        for kind in ('keyDown', 'keyUp'):
            self.call('Input.dispatchKeyEvent', type=kind, key=key, code=key, text=text if kind == 'keyDown' else '',
                      windowsVirtualKeyCode={'Enter': 13, 'Tab': 9}.get(key, 0))  # fmt: skip

    def screenshot(self, path: Path, whole_page: bool = False) -> Path:
        """What is seen, or the whole page, as PNG."""
        answer = self.call('Page.captureScreenshot', format='png', captureBeyondViewport=whole_page)
        path.write_bytes(base64.b64decode(answer['data']))
        return path


@contextlib.contextmanager
def running_browser(executable: str) -> Iterator[Browser]:
    """A browser with an empty profile, ended after the block."""
    to_browser, from_test = os.pipe()
    to_test, from_browser = os.pipe()
    with tempfile.TemporaryDirectory(prefix='chromium-', ignore_cleanup_errors=True) as profile:

        def take_places() -> None:  # the browser reads commands from descriptor 3 and answers on 4
            given, answered = (fcntl.fcntl(each, fcntl.F_DUPFD, 10) for each in (to_browser, from_browser))
            os.dup2(given, 3)
            os.dup2(answered, 4)

        process = subprocess.Popen(
            [executable, *FLAGS, f'--user-data-dir={profile}', 'about:blank'],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=False,
            preexec_fn=take_places,
            start_new_session=True,
        )
        os.close(to_browser)
        os.close(from_browser)
        try:
            yield Browser(from_test, to_test)
        finally:
            with contextlib.suppress(OSError):
                os.write(from_test, json.dumps({'id': 0, 'method': 'Browser.close'}).encode() + b'\0')
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()
            os.close(from_test)
            os.close(to_test)
