"""A JupyterHub on loopback for the tests: two people, a process for each, everything below a prefix."""

import os
import sys
from pathlib import Path

folder = Path(os.environ["HUB_FOLDER"])
public, inner, proxy = os.environ["HUB_PORTS"].split()
programs = Path(sys.executable).parent

c = get_config()  # noqa: F821 - JupyterHub gives it
c.JupyterHub.bind_url = f"http://127.0.0.1:{public}/research/"
c.JupyterHub.hub_bind_url = f"http://127.0.0.1:{inner}"
c.JupyterHub.db_url = f"sqlite:///{folder}/hub.sqlite"
c.JupyterHub.cookie_secret_file = f"{folder}/cookie_secret"
c.JupyterHub.cleanup_servers = True
c.ConfigurableHTTPProxy.api_url = f"http://127.0.0.1:{proxy}"
c.ConfigurableHTTPProxy.command = [str(Path(__file__).parent / "node_modules/.bin/configurable-http-proxy")]
c.ConfigurableHTTPProxy.pid_file = f"{folder}/proxy.pid"
c.JupyterHub.authenticator_class = "dummy"
c.DummyAuthenticator.password = os.environ["HUB_PASSWORD"]
c.Authenticator.allowed_users = {"alice", "bob"}
c.JupyterHub.spawner_class = "simple"
c.SimpleLocalProcessSpawner.home_dir_template = f"{folder}/home/{{username}}"
c.Spawner.cmd = [str(programs / "jupyterhub-singleuser")]
c.Spawner.args = [
    f"--LabServerApp.app_settings_dir={folder}/data",
    "--LabApp.expose_app_in_browser=True",
    *(["--allow-root"] if os.geteuid() == 0 else []),
]
c.Spawner.default_url = "/lab"
c.Spawner.start_timeout = c.Spawner.http_timeout = 120
kept = ("PATH", "PYTHONPATH", "JUPYTER_PATH", "JUPYTER_CONFIG_PATH", "OMP_NUM_THREADS", "OMP_WAIT_POLICY")
c.Spawner.environment = {name: os.environ[name] for name in kept if name in os.environ}
