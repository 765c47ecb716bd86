"""Everything that renders: tables, text, graphs, drawings, traces, logs and pages."""
