//! How many different things a HyperLogLog's registers have seen. Used by the sketches of visitors (sync) and of people (archive), which differ in
//! size and form but not in this. Pure.
//!
//! Ertl, New cardinality estimation algorithms for HyperLogLog sketches (2017), algorithm 6: no constants, no thresholds.

/// The estimate from how many registers hold each value: `counts` begins with the empty registers and ends with those that can rise no further.
pub fn estimate(counts: &[u32]) -> f64 {
    let [zero, between @ .., full] = counts else { return 0.0 };
    let registers = f64::from(counts.iter().sum::<u32>());
    let mut z = registers * tau(1.0 - f64::from(*full) / registers);
    for count in between.iter().rev() {
        z = 0.5 * (z + f64::from(*count));
    }
    z += registers * sigma(f64::from(*zero) / registers);
    registers * registers / (2.0 * std::f64::consts::LN_2 * z)
}

fn sigma(mut x: f64) -> f64 {
    if x >= 1.0 {
        return f64::INFINITY;
    }
    let (mut y, mut z) = (1.0, x);
    loop {
        x *= x;
        let before = z;
        z += x * y;
        y += y;
        if z <= before {
            return z;
        }
    }
}

fn tau(mut x: f64) -> f64 {
    if x <= 0.0 || x >= 1.0 {
        return 0.0;
    }
    let (mut y, mut z) = (1.0, 1.0 - x);
    loop {
        x = x.sqrt();
        let before = z;
        y *= 0.5;
        z -= (1.0 - x).powi(2) * y;
        if z >= before {
            return z / 3.0;
        }
    }
}
