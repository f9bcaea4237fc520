"""The paper's experiments (DiffADT, Zuo et al. 2024): its tables and figures beside what this code measures."""
