"""Grafana's dashboards: written here, generated into `deploy/grafana/dashboards/`."""
