"""litefs.yml: defaults, strictness, environment, and the messages of every refusal."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from litefs import config as configuration
from litefs.config import Config, ExecCommand, parse
from litefs.config_types import Duration, FileMode, Sync, split_command
from litefs.config_yaml import expand_environment
from litefs.errors import ConfigError

STATIC = "lease: {type: static}\n"

EVERY_KEY = """
exit-on-error: false
skip-sync: true
strict-verify: true
exec:
  - cmd: migrate --all
  - {cmd: serve, if-candidate: true}
data: {dir: /d, compress: false, retention: 1h, retention-monitor-interval: 30s, retention-bytes: 5}
fuse: {dir: /m, allow-other: true, debug: true, uid: 1, gid: 2, mode: 0640}
http:
  addr: "127.0.0.1:1"
  snapshot-timeout: 5s
  tls: {cert: /c, key: /k, ca: /a, verify-clients: false}
  auth-token: file:/t
  tokens: [{name: reports, token: r, databases: [r.db]}]
  open: [health, page]
proxy:
  addr: ":8080"
  target: "localhost:8081"
  db: app.db
  max-lag: 1s
  debug: true
  passthrough: ["*.png"]
  always-forward: [/w]
  redirect: fly-replay
  primary-redirect-timeout: 1s
  read-timeout: 2s
  read-header-timeout: 3s
  write-timeout: 4s
  idle-timeout: 5s
lease:
  type: consul
  hostname: h
  advertise-url: http://h:1
  candidate: false
  promote: true
  reconnect-delay: 2s
  demote-delay: 3s
  databases: [a.db]
  consul: {url: http://c, key: k, ttl: 15s, lock-delay: 2s}
  object: {url: "s3://b", key: o}
  grace: 4s
  take-back-timeout: 7s
replication:
  sync: any
  timeout: 8s
  on-shortage: degrade
  databases: [{name: "log*.db", sync: off}, {name: m.db, sync: 2}]
backup:
  type: s3
  url: s3://b/p
  path: ""
  cluster: c
  auth-token: t
  bucket: ""
  endpoint: http://e
  region: r
  force-path-style: false
  access-key-id: a
  secret-access-key: s
  account-name: n
  account-key: k
  databases: [a.db]
  exclude: [b.db]
  sync-interval: 2s
  levels: [1m]
  snapshot: {interval: 1h, retention: 2h}
  retention: 3h
  max-log-bytes: 1048576
  concurrency: 2
  verify-interval: 4h
  seed: true
  encryption: {key-file: /k}
log: {format: json, timestamp: true, debug: true}
tracing: {enabled: false, path: /t, max-size: 1, max-count: 2, compress: false, stdout: true}
"""


OTHERWISE = {("backup", "path"), ("backup", "bucket")}
"""What cannot be set beside the rest of EVERY_KEY: ``url`` stands for them."""


def read(text: str, environment: dict[str, str] | None = None) -> Config:
    return parse(text, "litefs.yml", environment)


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_defaults_are_those_of_go() -> None:
    config = read(STATIC)
    assert (config.data.dir, config.fuse.dir, config.http.addr) == ("/var/lib/litefs", "/litefs", ":20202")
    assert (config.data.retention, config.data.retention_monitor_interval) == (600, 60)
    assert config.data.retention_bytes == 1 << 30
    assert config.exit_on_error
    assert config.data.compress
    assert not config.skip_sync
    assert not config.strict_verify
    assert config.lease.candidate
    assert (config.lease.reconnect_delay, config.lease.demote_delay, config.lease.grace) == (1, 10, 5)
    assert (config.proxy.max_lag, config.proxy.primary_redirect_timeout) == (10, 5)
    assert (config.proxy.read_header_timeout, config.proxy.idle_timeout) == (10, 30)
    assert (config.tracing.max_size, config.tracing.max_count) == (64, 8)
    assert config.log.format == "text"
    assert (config.fuse.uid, config.fuse.gid, config.fuse.mode) == (None, None, None)


def test_every_key_of_go_is_read() -> None:
    config = parse(EVERY_KEY, "litefs.yml", None)
    assert config.commands == (ExecCommand(cmd="migrate --all"), ExecCommand(cmd="serve", if_candidate=True))
    assert config.fuse.mode == 0o640
    assert config.http.host_port == ("127.0.0.1", 1)
    assert config.lease.consul.ttl == 15
    assert config.proxy.passthrough == ("*.png",)
    defaults = Config()
    assert [(one.name, one.sync) for one in config.replication.databases] == [("log*.db", 0), ("m.db", 2)]
    for section in ("data", "fuse", "http", "proxy", "lease", "replication", "backup", "log", "tracing"):
        for field in getattr(config, section).__struct_fields__:
            changed, default = (getattr(getattr(c, section), field) for c in (config, defaults))
            assert changed != default or (section, field) in OTHERWISE, f"{section}.{field} was not read"


def test_plain_scalars_read_as_the_type_of_their_field() -> None:
    config = read("lease: {type: static, hostname: 10, advertise-url: yes}\ndata: {retention:}\n")
    assert (config.lease.hostname, config.lease.advertise_url) == ("10", "yes")
    assert config.data.retention == 600


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "litefs.yml:1:5: not valid YAML"),
        ("a: 1\n\tb: 2", "litefs.yml:2:1: not valid YAML"),
        ("a: \0", "not valid YAML"),
        ("", "the file is empty"),
        ("# nothing\n", "the file is empty"),
        ("- a", "litefs.yml:1:1"),
        ("data: " + "[" * 5000, "nested too deeply"),
        ("fuse: {uid: 2001-02-30}", "litefs.yml:1:13: fuse.uid: expected a whole number"),
        ("fuse: {uid: !!int x}", "fuse.uid: expected a whole number"),
        ("fuse: {debug: !!bool x}", "fuse.debug: expected true or false"),
        ("data: {retention-bytes: !!timestamp x}", "data.retention-bytes: expected a whole number"),
        ("data: {retention: 999999999999999999h}", "is longer than any duration can be"),
        (STATIC + 'data: {dir: "/a\\0b"}', "litefs.yml: '/a\\x00b' cannot be the name of a directory"),
        (STATIC + 'fuse: {dir: "\\ud800"}', "cannot be the name of a directory"),
        (STATIC + f"http: {{addr: ':{'9' * 5000}'}}", "http.addr: expected HOST:PORT"),
        ("leese: {}", "litefs.yml:1:1: unknown key 'leese'; did you mean 'lease'?"),
        ("data:\n  dri: /x", "litefs.yml:2:3: unknown key 'data.dri'; did you mean 'data.dir'?"),
        ("exec: [{cmd: a, zzz: 1}]", "unknown key 'exec[0].zzz'; known here: cmd, if-candidate"),
        ("data: {dir: /x, dir: /y}", "litefs.yml:1:17: data.dir: the key is given twice"),
        ("data: {retention: 10}", "litefs.yml:1:19: data.retention: expected a duration with a unit"),
        ("data: {retention: 0}", 'as in "0s"'),
        ("data: {retention: '10'}", "'10' is not a duration"),
        ("data: 5", "litefs.yml:1:7: data: expected"),
        ("fuse: {uid: root}", "litefs.yml:1:13: fuse.uid: expected a whole number, got 'root'"),
        ("fuse: {uid: true}", "expected a whole number"),
        ("fuse: {debug: 1}", "fuse.debug: expected true or false, got '1'"),
        ("fuse: {dir: [a]}", "fuse.dir: expected a plain value, not a list"),
        ("fuse: {mode: 0999}", "'0999' is not a file mode"),
        ("exec: [serve]", "exec[0]: expected"),
        ("exec: {cmd: serve}", "exec: expected a plain value, not a mapping"),
        (STATIC + "exec: serve > log", "'>' needs a shell"),
        (STATIC + "exec: serve 'a", "No closing quotation"),
        (STATIC + "exec: [{cmd: ''}]", "an exec command is empty"),
        (STATIC + "fuse: {dir: ''}", "fuse directory required"),
        (STATIC + "data: {dir: ''}", "data directory required"),
        (STATIC + "data: {dir: /litefs/}", "cannot be the same path"),
        (
            STATIC + "data: {dir: /litefs/x/../y}",
            "the data directory /litefs/y lies inside the fuse directory /litefs",
        ),
        (STATIC + "data: {dir: /}", "the fuse directory /litefs lies inside the data directory /"),
        (STATIC + "http: {addr: localhost}", "http.addr: expected HOST:PORT, got 'localhost'"),
        (STATIC + "http: {addr: ':70000'}", "http.addr: expected HOST:PORT"),
        (STATIC + "log: {format: xml}", "invalid log format"),
        ("replication: {sync: all}", "litefs.yml:1:21: replication.sync: 'all' is neither off, any, nor a"),
        ("replication: {sync: 0}", "nor a number of 1 to 15 replicas"),
        ("replication: {sync: 16}", "nor a number of 1 to 15 replicas"),
        ("replication: {databases: [{name: a, sync: '-1'}]}", "replication.databases[0].sync: '-1' is"),
        ("replication: {databases: [{name: a}]}", "missing required field `sync`"),
        (STATIC + "replication: {timeout: 8001ms}", "must be positive and at most 8 s, got 8.001s"),
        (STATIC + "replication: {timeout: 0s}", "must be positive and at most 8 s, got 0s"),
        (STATIC + "replication: {on-shortage: wait}", "must be 'refuse' or 'degrade', got 'wait'"),
        (STATIC + "proxy: {target: a}", "proxy database name required"),
        (STATIC + "proxy: {target: a, db: b}", "proxy bind address required"),
        (STATIC + "proxy: {target: a, addr: ':1', db: [b, '']}", "proxy database name required"),
        (STATIC + "proxy: {target: a, addr: ':1', db: [b, b]}", "proxy.db: a database is named twice"),
        (STATIC + "proxy: {target: a, addr: ':1', db: b}", "proxy.target: expected HOST:PORT, got 'a'"),
        (STATIC + "proxy: {target: 'a:1', addr: x, db: b}", "proxy.addr: expected HOST:PORT, got 'x'"),
        (STATIC + "proxy: {redirect: 307}", "proxy.redirect must be 'forward' or 'fly-replay', got '307'"),
        (STATIC + "data: {retention-bytes: -1}", "must not be negative"),
        (STATIC + "data: {retention-monitor-interval: 0s}", "must be positive"),
        (
            "lease: {candidate: true}",
            "invalid lease type, must be one of consul, fly, object, static, got: ''",
        ),
        (
            "lease: {type: static, databases: [a]}",
            "cannot specify a database replication filter on candidate nodes",
        ),
        ("lease: {type: static, candidate: false}", "a replica needs lease.advertise-url"),
        ("lease: {type: consul}", "must specify a consul key"),
        ("lease: {type: consul, consul: {key: /}}", "must specify a consul key"),
        ("lease: {type: consul, consul: {key: /k}}", "must not begin or end with a slash"),
        (
            "lease: {type: consul, consul: {key: k, ttl: 9s}}",
            "lease.consul.ttl: Consul takes 10s to 24h, got 9s",
        ),
        ("lease: {type: consul, consul: {key: k, lock-delay: 61s}}", "lease.consul.lock-delay"),
        ("lease: {type: object}", "lease.object.url: write a URL"),
        ("lease: {type: object, object: {url: /path}}", "lease.object.url: write a URL"),
        ("lease: {type: object, object: {url: 'file:///p', key: a/../b}}", "lease.object.key"),
        ("lease: {type: object, object: {url: 'file:///p', key: ''}}", "lease.object.key"),
        ("lease: {type: object, object: {url: 'file://p'}}", "lease.object.url: write file:///path"),
        (
            "lease: {type: object, object: {url: 'file:///litefs/p'}}",
            "/litefs/p lies inside the fuse directory",
        ),
        (STATIC.replace("}", ", grace: -1s}"), "lease.grace must not be negative"),
        (STATIC.replace("}", ", take-back-timeout: 61s}"), "lease.take-back-timeout must be from 0s to 1m"),
    ],
)
def test_refusals_name_place_and_cause(text: str, message: str) -> None:
    assert message in refused(text)


def test_directories_are_compared_through_links(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    text = f"{STATIC}fuse: {{dir: {tmp_path}/link}}\ndata: {{dir: {tmp_path}/real/data}}\n"
    assert "lies inside the fuse directory" in refused(text)
    assert "same path" in refused(text.replace("/real/data", "/real"))
    read(text.replace("/real/data", "/really"))


@pytest.mark.parametrize("lease", ["type: consul, consul: {key: k}", "type: object, object: {url: 's3://b'}"])
def test_a_lease_that_elects_advertises_this_machine(lease: str) -> None:
    config = read(f"lease: {{{lease}}}\nhttp: {{addr: ':99'}}\n")
    assert config.lease.hostname == socket.gethostname()
    assert config.lease.advertise_url == f"http://{socket.gethostname()}:99"


FLY = {
    "FLY_APP_NAME": "app",
    "FLY_REGION": "ams",
    "PRIMARY_REGION": "ams",
    "FLY_MACHINE_ID": "m1",
    "FLY_CONSUL_URL": "https://:t@consul/app",
}


def test_fly_tells_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in FLY.items():
        monkeypatch.setenv(name, value)
    lease = read("lease: {type: fly}\n").lease
    assert (lease.hostname, lease.advertise_url) == ("m1", "http://m1.vm.app.internal:20202")
    assert (lease.consul.url, lease.consul.key) == (FLY["FLY_CONSUL_URL"], "litefs/app")
    assert lease.candidate
    assert not read("lease: {type: fly, candidate: false}\n").lease.candidate
    monkeypatch.setenv("FLY_REGION", "fra")
    assert not read("lease: {type: fly}\n").lease.candidate
    lease = read("lease: {type: fly, hostname: h, advertise-url: u, consul: {url: http://c, key: k}}\n").lease
    assert (lease.hostname, lease.advertise_url, lease.consul.url, lease.consul.key) == (
        "h",
        "u",
        "http://c",
        "k",
    )


@pytest.mark.parametrize("name", ["FLY_APP_NAME", "FLY_REGION", "PRIMARY_REGION", "FLY_CONSUL_URL"])
def test_what_fly_does_not_tell_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for known, value in FLY.items():
        monkeypatch.setenv(known, value)
    monkeypatch.setenv(name, "")
    assert refused("lease: {type: fly}\n").endswith(f"lease type 'fly' needs {name} in the environment")


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("$A ${A} ${ A }", "x x x"),
        ("$MISSING|${MISSING}|", "||"),
        ("$$A", "A"),
        ("100$ $% $", "100$ $% $"),
        ("${}${A", "A"),
        ("$1A", "A"),
        ("# $A", "# x"),
        ("${A == 'x'} ${A=='y'} ${A != \"x\"} ${A == B} ${A != C}", "true false false false true"),
        ("${MISSING == ''}", "true"),
    ],
)
def test_environment(text: str, expanded: str) -> None:
    assert expand_environment(text, {"A": "x", "B": "y"}) == expanded


def test_environment_reaches_typed_keys() -> None:
    text = "lease: {type: static, candidate: \"${R == 'a'}\", advertise-url: http://p}\n".replace('"', "")
    assert read(text, {"R": "a"}).lease.candidate
    assert not read(text, {"R": "b"}).lease.candidate


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10),
        ("1m30s", 90),
        ("500ms", 0.5),
        ("1.5h", 5400),
        ("0", 0),
        ("0s", 0),
        ("-2s", -2),
        ("+2s", 2),
        ("10us", 1e-5),
        ("10µs", 1e-5),
        ("7ns", 7e-9),
        (".5s", 0.5),
        ("1h1m1s1ms", 3661.001),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert Duration.parse(text) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize("text", ["", "10", "s", "1 s", "1d", "1s2", "--1s", "1e3s", "٣s", "9223372037s"])
def test_wrong_durations(text: str) -> None:
    with pytest.raises(ConfigError):
        Duration.parse(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0055, "5.5ms"),
        (1.234567, "1.234567s"),
        (90, "1m30s"),
        (3600, "1h0m0s"),
        (1e-5, "10µs"),
        (-2, "-2s"),
    ],
)
def test_durations_print_as_in_go(seconds: float, text: str) -> None:
    assert str(Duration(seconds)) == text


@given(st.integers(min_value=-(10**15), max_value=10**15))
def test_durations_survive_printing(nanoseconds: int) -> None:
    duration = Duration(nanoseconds / 10**9)
    assert Duration.parse(str(duration)) == duration


@pytest.mark.parametrize(("text", "mode"), [("640", 0o640), ("0640", 0o640), ("0o640", 0o640), ("0", 0)])
def test_modes_are_octal(text: str, mode: int) -> None:
    assert FileMode.parse(text) == mode


@pytest.mark.parametrize("text", ["", "8", "-1", "10000", "0x1f", "rw"])
def test_wrong_modes(text: str) -> None:
    with pytest.raises(ConfigError):
        FileMode.parse(text)


@pytest.mark.parametrize(("text", "replicas"), [("off", 0), ("any", 1), ("1", 1), ("2", 2), ("15", 15)])
def test_numbers_of_replicas(text: str, replicas: int) -> None:
    assert Sync.parse(text) == replicas
    assert read(f"{STATIC}replication: {{sync: {text}}}\n").replication.sync == replicas


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("serve -a 1", ["serve", "-a", "1"]),
        ("sh -c 'a; b > c'", ["sh", "-c", "a; b > c"]),
        (r'x "a|b" \;', ["x", "a|b", ";"]),
        (r"x 'a\' b", ["x", "a\\", "b"]),
        ("x $HOME", ["x", "$HOME"]),
    ],
)
def test_commands(command: str, words: list[str]) -> None:
    assert split_command(command) == words


@pytest.mark.parametrize("command", ["a;b", "a & b", "a |b", "a <b", r"'\' ; x", "'a' > b"])
def test_shell_operators_are_refused(command: str) -> None:
    with pytest.raises(ConfigError, match="needs a shell"):
        split_command(command)


def test_search_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    monkeypatch.setattr(Config, "SEARCH_PATH", Config.SEARCH_PATH[:2])
    with pytest.raises(ConfigError, match="config file not found"):
        configuration.load()
    (home / "litefs.yml").write_text(STATIC)
    assert configuration.load().path == str(home / "litefs.yml")
    (here / "litefs.yml").write_text(STATIC)
    assert configuration.load().path == str(here / "litefs.yml")
    with pytest.raises(ConfigError, match=r"config file not found: other\.yml"):
        configuration.load("other.yml")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Is a directory"):
        configuration.load(str(tmp_path))
    (tmp_path / "litefs.yml").write_bytes(b"a: \xff")
    with pytest.raises(ConfigError, match="no UTF-8 at byte 3"):
        configuration.load(str(tmp_path / "litefs.yml"))


def test_without_expansion_dollars_stay(tmp_path: Path) -> None:
    path = tmp_path / "litefs.yml"
    path.write_text("lease: {type: static, hostname: $X}\n")
    assert configuration.load(str(path), expand_env=False).config.lease.hostname == "$X"


def test_one_node_without_a_file(tmp_path: Path) -> None:
    config = Config.for_dir(tmp_path / "db")
    assert config.fuse.dir == str(tmp_path / "db")
    assert config.data.dir == str(tmp_path / ".db.litefs")
    assert (config.lease.type, config.lease.candidate) == ("static", True)
    assert config.http.host_port[0] == "127.0.0.1"
    with pytest.raises(ConfigError, match="choose a directory"):
        Config.for_dir("/")


def test_a_taken_port_is_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(configuration, "DEFAULT_PORT", port)
        assert Config.for_dir(tmp_path / "db").http.host_port[1] not in (0, port)
