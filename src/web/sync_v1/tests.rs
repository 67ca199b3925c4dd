//! Every operation as clients ask for it, and every refusal.
