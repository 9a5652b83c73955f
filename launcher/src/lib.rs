//! The command line, the control plane, the supervisor and the report.
