"""Prints an access token as Twilio's library for Python mints it: mint.py IDENTITY SERVICE SECONDS"""

import json
import os
import sys

from twilio.jwt.access_token import AccessToken
from twilio.jwt.access_token.grants import SyncGrant

account, key = (json.loads(os.environ[name]) for name in ("CLIENTS_ACCOUNT", "CLIENTS_KEY"))
identity, service, seconds = sys.argv[1:]
token = AccessToken(account["account_sid"], key["sid"], key["secret"], identity=identity, ttl=int(seconds))
token.add_grant(SyncGrant(service_sid=service))
print(token.to_jwt())
