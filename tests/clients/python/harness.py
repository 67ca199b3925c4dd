"""What the Python suites share: the server under test, Twilio's client for it, and the closing line."""

import contextlib
import json
import os
import sys
import time
import types
import unittest
import uuid

from twilio.base.exceptions import TwilioException, TwilioRestException
from twilio.http.http_client import TwilioHttpClient
from twilio.rest import Client

import contract

URL = os.environ["CLIENTS_URL"]
ACCOUNT, AUTH_TOKEN, DEFAULT_SERVICE = (json.loads(os.environ["CLIENTS_ACCOUNT"])[name] for name in ("account_sid", "auth_token", "service_sid"))
KEY, SECRET = (json.loads(os.environ["CLIENTS_KEY"])[name] for name in ("sid", "secret"))


class Checked(TwilioHttpClient):
    """The library's own HTTP client; every answer is held against the OpenAPI document before the library sees it."""

    def __init__(self):
        super().__init__(timeout=20)
        self.called = set()

    def request(self, method, url, **more):
        answer = super().request(method, url, **more)
        self.called.add(contract.check(URL, method.upper(), url, answer.status_code, answer.headers, answer.text))
        return answer


def client(user=ACCOUNT, password=AUTH_TOKEN):
    """Twilio's client as an app makes it, but for the one line that names another server."""
    made = Client(user, password, http_client=Checked())
    made.sync.base_url = URL
    return made


def unique(what):
    return f"{what}-{uuid.uuid4().hex[:12]}"


def until(seconds, seen):
    """The first true thing that `seen` gives, within so many seconds."""
    end = time.monotonic() + seconds
    while True:
        value = seen()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"did not come within {seconds} s")
        time.sleep(0.05)


class Suite(unittest.TestCase):
    """Tests over a Sync service of their own."""

    longMessage = True
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.client = client()
        cls.services = cls.client.sync.v1.services
        made = cls.services.create(friendly_name=unique(cls.__name__))
        cls.sid, cls.service = made.sid, cls.services(made.sid)
        cls.addClassCleanup(cls.service.delete)

    @contextlib.contextmanager
    def refused(self, status, code):
        with self.assertRaises(TwilioException) as caught:
            yield
        told = caught.exception
        # Of a page the library tells no more than the answer itself.
        answer = told if isinstance(told, TwilioRestException) else types.SimpleNamespace(**json.loads(told.args[1].text))
        self.assertEqual((answer.status, answer.code), (status, code), told)


def main():
    result = unittest.main(exit=False, verbosity=0).result
    # A test can fail twice, by itself and by what it leaves behind.
    bad = len({test.id() for test, _ in result.failures + result.errors})
    print(f"{max(0, result.testsRun - bad)} passed, {bad} failed")
    sys.exit(bool(bad))
