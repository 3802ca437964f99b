"""neutron-server's side of reports: oslo.messaging's own RPC server with an endpoint like AgentExtRpcCallback.

Prints one JSON object per line: {"ready": true}, then {"context": ..., "args": ...} for each report.
"""
import json
import sys
import threading

import oslo_messaging
from oslo_config import cfg


class Reports:
    # As in neutron.db.agents_db; RPC_NAMESPACE_STATE is None.
    target = oslo_messaging.Target(version="1.2", namespace=None)

    def report_state(self, context, **kwargs):
        say({"context": context, "args": kwargs})


def say(what):
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def main():
    url = sys.argv[1]
    oslo_messaging.set_transport_defaults("neutron")
    conf = cfg.CONF
    transport = oslo_messaging.get_rpc_transport(conf, url=url)
    target = oslo_messaging.Target(topic="q-reports-plugin", server="control-node", fanout=False)
    server = oslo_messaging.get_rpc_server(transport, target, [Reports()], executor="threading")
    server.start()
    say({"ready": True})
    threading.Event().wait()


main()
