"""Verification of machines: what is wrong with one, and what was looked at to say so.

lint      sixteen static checks over compiled tables (`engine.verification.lint`)
scope     small values of every type, small ones first (`engine.verification.scope`)
"""
