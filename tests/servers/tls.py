"""An authority and a certificate of the servers' own, made by the keytool that comes with Java."""

import collections
import subprocess

import cache
from processes import Failed

Authority = collections.namedtuple("Authority", "ca keystore secret")
SECRET = "contrail"


def authority(directory):
    """One for all servers of a directory: made at the first call."""
    folder = directory / "tls"
    made = Authority(folder / "ca.pem", folder / "server.p12", SECRET)
    if made.keystore.exists():
        return made
    folder.mkdir()

    def keytool(command, store, *rest):
        words = [cache.java().with_name("keytool"), f"-{command}", "-keystore", folder / store, "-storetype", "PKCS12", "-storepass", SECRET, *rest]
        done = subprocess.run(words, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise Failed(f"keytool -{command} failed:\n{done.stdout}")

    key = ["-keyalg", "EC", "-groupname", "secp256r1", "-validity", "30"]
    keytool("genkeypair", "ca.p12", "-alias", "ca", *key, "-dname", "CN=Contrail tests", "-ext", "bc:c", "-ext", "ku:c=keyCertSign,cRLSign")
    keytool("exportcert", "ca.p12", "-alias", "ca", "-rfc", "-file", "ca.pem")
    keytool("genkeypair", "server.p12.new", "-alias", "server", *key, "-dname", "CN=localhost")
    keytool("certreq", "server.p12.new", "-alias", "server", "-file", "server.csr")
    about = ["-validity", "30", "-ext", "san=ip:127.0.0.1,ip:127.0.0.2,dns:localhost", "-ext", "eku=serverAuth"]
    keytool("gencert", "ca.p12", "-alias", "ca", "-infile", "server.csr", "-outfile", "server.pem", "-rfc", *about)
    keytool("importcert", "server.p12.new", "-alias", "ca", "-noprompt", "-file", "ca.pem")
    keytool("importcert", "server.p12.new", "-alias", "server", "-file", "server.pem")
    (folder / "server.p12.new").rename(made.keystore)
    return made
