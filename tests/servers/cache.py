"""The servers' class paths, fetched once by Maven and kept outside the tree.

A class path is known by its .pom and its .sha256 beside this file: what they do not name is not used, and a change of either is another
folder of the cache.
"""

import contextlib
import fcntl
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import tempfile

from processes import Failed

HERE = pathlib.Path(__file__).parent
COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
JAVA = 17  # the one release that both servers support


def cache():
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    folder = pathlib.Path(base) / "contrail" / "servers"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def alone():
    """One at a time on this machine: others wait, and then find what this one has fetched."""
    with open(cache() / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def java():
    """A Java of the right release; installed from Debian where there is none."""
    found = find_java()
    if not found:
        with alone():
            found = find_java() or (apt_install(f"openjdk-{JAVA}-jre-headless"), find_java())[1]
    if not found:
        raise Failed(f"Java {JAVA} is missing: install it, or set JAVA_HOME to one")
    return found


def find_java():
    candidates = [pathlib.Path(home) / "bin" / "java" for home in [os.environ.get("JAVA_HOME"), *sorted(pathlib.Path("/usr/lib/jvm").glob("*"))] if home]
    if on_path := shutil.which("java"):
        candidates.append(pathlib.Path(on_path).resolve())
    for java in candidates:
        with contextlib.suppress(OSError):
            if java.exists() and version(java).split(".")[0] == str(JAVA):
                return java
    return None


def version(java):
    release = (java.parent.parent / "release").read_text()
    return re.search(r'^JAVA_VERSION="(.*)"', release, re.MULTILINE)[1]


def apt_install(package):
    if not shutil.which("apt-get"):
        return
    sudo = [] if os.geteuid() == 0 else ["sudo"]
    for words in [["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", package]]:
        subprocess.run([*sudo, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", *words], stdout=subprocess.DEVNULL)


def class_path(kind):
    """The folder with the server's jars, filled if need be."""
    known = (HERE / f"{kind}.pom").read_bytes() + sums_file(kind).read_bytes()
    folder = cache() / f"{kind}-{hashlib.sha256(known).hexdigest()[:12]}"
    if folder.exists():
        return folder
    with alone():
        if not folder.exists():
            with fetched(kind) as jars:
                check(kind, jars)
                jars.rename(folder)
    return folder


def accept(kind):
    """What Maven finds for the .pom today becomes what is expected from now on."""
    with alone(), fetched(kind) as jars:
        sums_file(kind).write_text("".join(f"{digest}  {name}\n" for name, digest in sums(jars).items()))


def sums_file(kind):
    return HERE / f"{kind}.sha256"


def sums(jars):
    return {jar.name: hashlib.sha256(jar.read_bytes()).hexdigest() for jar in sorted(jars.iterdir())}


def check(kind, jars):
    expected = dict(reversed(line.split()) for line in sums_file(kind).read_text().splitlines())
    found = sums(jars)
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        raise Failed(f"{kind} cannot be had: not what {sums_file(kind).name} expects: {', '.join(wrong)}")


@contextlib.contextmanager
def fetched(kind):
    """The jars in a folder that is gone afterwards, unless it was renamed."""
    if not shutil.which("mvn"):
        apt_install("maven")
    if not shutil.which("mvn"):
        raise Failed(f"{kind} cannot be had: mvn is missing: install Maven")
    for left in cache().glob("fill-*"):
        # Of a run that was killed: whoever fills the cache is alone.
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=f"fill-{kind}-", dir=cache()) as scratch:
        jars = pathlib.Path(scratch) / "jars"
        command = ["mvn", "-q", "-B", "-ntp", "-f", HERE / f"{kind}.pom", COPY, "-DincludeScope=runtime", f"-DoutputDirectory={jars}"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode or not jars.exists():
            errors = [line for line in done.stdout.splitlines() if "[ERROR]" in line] or done.stdout.splitlines()
            raise Failed(f"{kind} cannot be had: Maven failed:\n" + "\n".join(errors[:5]))
        yield jars
