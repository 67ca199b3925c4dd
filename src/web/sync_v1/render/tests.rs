//! What is shown, field by field.
