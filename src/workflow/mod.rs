//! The workflow language: model, parser, diagnostics and expressions.
