"""The control node of the tests: networking-spp's own drivers, unmodified, on stand-ins for neutron.

Reads one command per line on stdin and answers on stdout, both JSON. Commands run side by side, each
answer carries the command's "id". What neutron would hand to the drivers (port and tap contexts, the
TaaS plugin's database) comes with the command.
"""

import builtins
import json
import sys
import threading
import time
import traceback
import warnings

warnings.simplefilter("ignore")
# neutron installs gettext's under this name before it loads drivers.
builtins._ = lambda text: text

from neutron_lib import exceptions as n_exc  # noqa: E402
from oslo_config import cfg  # noqa: E402

from networking_spp.mech_driver import mech_spp  # noqa: E402
from networking_spp.service_drivers import taas  # noqa: E402


class PortContext:
    """What ML2 hands to a mechanism driver."""

    def __init__(self, command):
        self.current = {"id": command["port"], "mac_address": command.get("mac")}
        self.host = command.get("host")
        self.original_host = command.get("original_host")
        self.vif_type = command.get("vif_type")
        self.original_vif_type = command.get("original_vif_type")
        self.segments_to_bind = command.get("segments", [])
        self.agent_alive = command.get("agent_alive", True)
        self.binding = None

    def host_agents(self, agent_type):
        assert agent_type == "SPP neutron agent"
        return [{"agent_type": agent_type, "alive": self.agent_alive}]

    def set_binding(self, segment_id, vif_type, vif_details, status=None):
        self.binding = {
            "segment": segment_id,
            "vif_type": vif_type,
            "vif_details": vif_details,
            "status": status,
        }


class TaasPlugin:
    """The part of TaaS's plugin and database that a driver asks. Hosts of ports by port id."""

    def __init__(self):
        self.hosts = {}
        self.tap_services = {}

    def _get_port_details(self, _context, port_id):
        if port_id not in self.hosts:
            raise n_exc.PortNotFound(port_id=port_id)
        return {"id": port_id, "binding:host_id": self.hosts[port_id]}

    def get_tap_service(self, _context, tap_service_id):
        return self.tap_services[tap_service_id]


class TapContext:
    """What TaaS hands to a service driver."""

    _plugin_context = None

    def __init__(self, tap_service=None, tap_flow=None):
        self.tap_service = tap_service
        self.tap_flow = tap_flow


class Control:
    def __init__(self, etcd_port):
        cfg.CONF([], project="neutron")
        cfg.CONF.set_override("etcd_host", "127.0.0.1", "spp")
        cfg.CONF.set_override("etcd_port", etcd_port, "spp")
        self.mechanism = mech_spp.SppMechanismDriver()
        self.mechanism.initialize()
        self.watch_late = threading.local()
        self._stumble_at_watches(self.mechanism.etcd.client.session)
        self.plugin = TaasPlugin()
        self.taas = taas.SppTaasDriver(self.plugin)

    def _stumble_at_watches(self, session):
        """A busy machine: whoever has asked for it gets to its watch late."""
        post = session.post

        def late_post(url, **kwargs):
            if url.endswith("/watch"):
                time.sleep(getattr(self.watch_late, "seconds", 0))
            return post(url, **kwargs)

        session.post = late_post

    def bind(self, command):
        self.watch_late.seconds = command.get("watch_late_s", 0)
        context = PortContext(command)
        self.mechanism.bind_port(context)
        return context.binding

    def delete(self, command):
        self.mechanism.delete_port_postcommit(PortContext(command))

    def update(self, command):
        self.mechanism.update_port_postcommit(PortContext(command))

    def tap_service(self, command):
        self.plugin.hosts.update(command["hosts"])
        service = {"id": command["tap_service"], "port_id": command["port"]}
        self.taas.create_tap_service_precommit(TapContext(tap_service=service))
        self.taas.create_tap_service_postcommit(TapContext(tap_service=service))
        self.plugin.tap_services[service["id"]] = service

    def _tap_flow(self, command):
        self.plugin.hosts.update(command["hosts"])
        return TapContext(tap_flow={
            "id": command["tap_flow"],
            "source_port": command["source"],
            "tap_service_id": command["tap_service"],
            "direction": command["direction"],
        })

    def tap(self, command):
        context = self._tap_flow(command)
        self.taas.create_tap_flow_precommit(context)
        self.taas.create_tap_flow_postcommit(context)

    def untap(self, command):
        context = self._tap_flow(command)
        self.taas.delete_tap_flow_precommit(context)
        self.taas.delete_tap_flow_postcommit(context)

    def versions(self, _command):
        import importlib.metadata

        names = ["networking-spp", "etcd3gw", "neutron-lib"]
        found = {name: importlib.metadata.version(name) for name in names}
        found["api_path"] = self.mechanism.etcd.client.api_path
        return found


WORDS = ["bind", "delete", "update", "tap_service", "tap", "untap", "versions"]


def main():
    control = Control(int(sys.argv[1]))
    stdout = threading.Lock()

    def answer(**fields):
        with stdout:
            print(json.dumps(fields), flush=True)

    def run(command):
        try:
            result = getattr(control, command["do"])(command)
            answer(id=command["id"], result=result)
        except Exception as error:
            traceback.print_exc()
            answer(id=command["id"], error=type(error).__name__)

    for line in sys.stdin:
        command = json.loads(line)
        assert command["do"] in WORDS
        threading.Thread(target=run, args=(command,), daemon=True).start()


if __name__ == "__main__":
    main()
